"""The flower challenge: 10,000 images, batches of 64, "the fastest, most stable training possible", and why.

    python examples/flowers.py [--data FOLDER] [--epochs 2] [--seeds 20] [--seed 0] [--quick]

The strategy (Flax Linen, norms from `jaxnorm.linen`, code in `flower_network.py`), argued:

- Placement: convolution, norm, ReLU, as in the batch-norm paper and ResNet (arXiv:1502.03167, arXiv:1512.03385). The
  convolution has no bias, since the norm's takes its place.
- The last scale of a residual branch starts at zero, so that the network begins as a shallow one (arXiv:1706.02677).
- Momentum 0.9. An epoch has 10,000 / 64 = 156 steps. The running average looks back 1 / (1 - momentum) steps: 10 are
  a small part of an epoch, Flax's default of 0.99 makes it 100, and with 0.999 most of the initial values are left.
- Weight decay spares scales and biases: `mask=jn.decay_mask`.
- A warm-up of a fifth of an epoch, since the first batches' gradients are no guide for large steps; then a cosine.
- At the end the running statistics are thrown away and pooled anew by `jn.recalibrate`, for the weights that remain.
- For inference the norms are folded into their convolutions (`jaxnorm.fold`): the same network without any norm.

Every choice is changed alone and run with the first three seeds; norm and ReLU also change places at 0.3 of the rate. A
choice mattered if all seeds agree and the median change exceeds the standard deviation of the strategy's seeds.
Momentum and recalibration do not touch training, so each run keeps several averages of its own and is judged with each
of them.

All are tuned on validation images, as many as test images (of photographs a tenth of what there is to learn from), and
reported on the test images: the best learning rate is the one with the fewest steps to 95%, or else with the highest
accuracy. The strategy and two ways to train without norms, SGD and Adam from He's weights, have one seed at each of the
same five rates (Adam's are a hundredth), half a decade apart, and on beyond an end that is the best or usable, while
there are rates in the list. The best rate of each way without norms gets two more seeds, and the highest median
accuracy wins. All of this has as many epochs as the runs that follow. As they are few for it, the network without norms
is tuned again with twice the epochs, each way at its best rate and those beside it, on while the best is at an end, and
the best gets three seeds.

A seed decides weights and batches; the images are drawn once, by `--seed`. It converges if its network reaches 95% of
the test images before its epochs are over. A spike is how far the loss of a batch rises above the median of the 20
before it. A learning rate is usable if it reaches nine tenths of the network's best accuracy (on validation images, as
all of the tuning); the range of usable rates is the unbroken one around the best.

Verdicts (`flower_report.py`): the strategy is compared with a network without norms seed by seed, in the seeds that
both have (a seed in which neither arrives is a tie). It is faster if the median over these seeds is at least 1.1 times
less time than without norms at either number of epochs, and slower the other way around. It is more stable in seeds
that converge if a quarter of the seeds more do, in spikes if they are lower in three of four seeds, and in usable rates
if its range is longer, by half a decade or more, than that of each way without norms.

Images are generated (`flower_images.py`), or your own: `--data FOLDER` takes a folder of class folders, or Oxford 102
Flowers as published (jpg/, imagelabels.mat, setid.mat). Leaves results.json and flowers.png in runs/flowers/. Source:
lesson 1, the ultimate challenge at its end.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from experiment import options, recording
from flower_folders import photographs
from flower_images import SPECIES, flowers
from flower_network import BATCH, MOMENTA, Choices, Data, accuracy, folded, recalibrated, train
from flower_report import USABLE, report

TARGET = 0.95
PAIRED = 3  # seeds of each ablation
FEW = 3  # seeds of whatever else is not the main comparison
LONGER = 2  # times the epochs, for the network without norms
BESIDE = 3  # rates that its longer runs try at first: the best, the next lower and the next higher
WINDOW = 20  # batches that a spike is compared with
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of SGD; Adam's are a hundredth
TRIED = RATES[2:7]  # at first
VALID = 10  # of photographs to learn from, every tenth is for validation

STRATEGY = Choices()
WITHOUT = {
    "no norms": Choices(order="none"),
    "no norms, Adam": Choices(order="none", optimizer="adam"),
}
# A choice and its alternative, as a change of the strategy.
ABLATIONS: dict[tuple[str, str], Callable[[Choices], Choices]] = {
    ("norm before ReLU", "after it"): lambda s: s._replace(order="relu-norm"),
    ("norm before ReLU", "after it, at 0.3 of the rate"): lambda s: s._replace(order="relu-norm", rate=0.3 * s.rate),
    ("last scale from zero", "from one"): lambda s: s._replace(zero_last=False),
    ("decay spares norms", "shrinks them too"): lambda s: s._replace(spare_norms=False),
    ("warm-up", "none"): lambda s: s._replace(warm_up=0.0),
}
AVERAGES = ("recalibrated", *map(str, MOMENTA))


def extend(parser) -> None:
    parser.add_argument("--data", type=Path, help="folder of photographs; without it flowers are generated")
    parser.add_argument("--size", type=int, help="height and width of images: 24 if generated, 64 if read")
    parser.add_argument("--images", type=int, default=10_000, help="generated images to learn from")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the images")


def load(chosen) -> tuple[Data, list[str]]:
    if chosen.size is not None and chosen.size < 8:
        raise ValueError(f"--size must be at least 8, since the network halves it three times; got {chosen.size}.")
    if chosen.epochs < 1:
        raise ValueError(f"--epochs must be at least 1; got {chosen.epochs}.")
    if chosen.data is None:
        if chosen.images < BATCH:
            raise ValueError(f"--images must be at least {BATCH}, one batch; got {chosen.images}.")
        images = partial(flowers, size=chosen.size or 24)
        train_count, tests = (640, 200) if chosen.quick else (chosen.images, 1000)
        parts = ((chosen.seed, train_count), (10**6 + chosen.seed, tests), (2 * 10**6 + chosen.seed, tests))
        return Data(*(array for part in parts for array in images(*part))), [s.name for s in SPECIES]
    x, y, x_test, y_test, names = photographs(chosen.data, chosen.size or 64, chosen.seed)
    order = np.random.default_rng(chosen.seed).permutation(len(x))
    valid, learned = np.split(order, [len(x) // VALID])
    if len(learned) < BATCH:
        raise ValueError(
            f"--data needs {BATCH} images to learn from, one batch; got {len(learned)} in {chosen.data}, and "
            f"{len(valid)} for validation."
        )
    return Data(x[learned], y[learned], x_test, y_test, x[valid], y[valid]), names


def main() -> None:
    chosen = options(__doc__, "flowers", seeds=20, extend=extend)
    try:
        data, names = load(chosen)
    except ValueError as error:
        raise SystemExit(f"flowers: {error}") from None
    epochs = 1 if chosen.quick else chosen.epochs
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    rates, tried = (TRIED[1:4], TRIED[1:4]) if chosen.quick else (RATES, TRIED)
    few, paired = seeds[:FEW], seeds[:PAIRED]
    tuning = len(tried) + len(WITHOUT) * (len(tried) + len(few) - 1 + BESIDE)
    with recording("flowers", chosen, tuning + 2 * len(seeds) + len(few) + len(ABLATIONS) * len(paired)) as record:
        do, choose = (partial(measure, record, images) for images in (data, data.for_choosing()))
        for name, choices in {"strategy": STRATEGY, **WITHOUT}.items():
            what = {"part": "sweep", "name": name}
            sweep(record, choose, choices, rates, tried, level=USABLE, epochs=epochs, seed=chosen.seed, **what)
        strategy = best(record, part="sweep", name="strategy")
        finalists = [best(record, part="sweep", name=name) for name in WITHOUT]
        for name, finalist in zip(WITHOUT, finalists, strict=True):
            for seed in few[1:]:
                choose(finalist, epochs, seed, part="playoff", name=name)
        without = max(finalists, key=lambda choices: np.median(record.values("final", **choices._asdict())))
        for seed in seeds:
            do(strategy, epochs, seed, part="main", name="strategy")
            do(without, epochs, seed, part="main", name="no norms")
        for name, finalist in zip(WITHOUT, finalists, strict=True):
            what = {"part": "longer sweep", "name": name, "epochs": epochs * LONGER, "seed": chosen.seed}
            sweep(record, choose, finalist, rates, beside(finalist, rates), level=1.0, **what)
        patient = best(record, part="longer sweep")
        for seed in few:
            do(patient, epochs * LONGER, seed, part="longer", name="no norms")
        for (choice, instead), change in ABLATIONS.items():
            for seed in paired:
                do(change(strategy), epochs, seed, part="ablation", name=choice, instead=instead)
        report(record, data, names, target=TARGET, longer=LONGER, ablations=list(ABLATIONS), averages=AVERAGES)


def at(rate: float, choices: Choices) -> Choices:
    return choices._replace(rate=rate / 100 if choices.optimizer == "adam" else rate)


def beside(choices: Choices, rates: Sequence[float]) -> Sequence[float]:
    """The rate of these choices, and the next lower and higher one."""
    place = [at(rate, choices).rate for rate in rates].index(choices.rate)
    return rates[max(0, place - 1) : place + 2]


def sweep(record, choose, choices: Choices, rates, tried, *, level: float, epochs: int, seed: int, **what) -> None:
    """One seed at each of the rates `tried`, and on beyond their ends as `beyond` says."""
    found = {}
    waiting = list(tried)
    while waiting:
        rate = waiting.pop(0)
        choose(at(rate, choices), epochs, seed, **what)
        found[rate] = standing(record.rows[-1])
        waiting = waiting or beyond(rates, found, level)


def beyond(rates: Sequence[float], found: dict[float, tuple[float, float]], level: float) -> list[float]:
    """The rate after an end of those tried that is the best of them or has `level` of the best accuracy, if any."""
    best, most = max(found, key=found.__getitem__), max(accuracy for _, accuracy in found.values())
    for end, step in ((min(found), -1), (max(found), 1)):
        after = rates.index(end) + step
        if 0 <= after < len(rates) and (end == best or found[end][1] >= level * most):
            return [rates[after]]
    return []


def standing(row) -> tuple[float, float]:
    """Larger is better: the steps to the target, fewest first, then the accuracy."""
    return -(row["steps_to_target"] or np.inf), row["final"]


def best(record, **where) -> Choices:
    """The choices that reach the target first, or else come closest, of these rows."""
    rows = [row for row in record.rows if all(row.get(key) == value for key, value in where.items())]
    row = max(rows, key=standing)
    return Choices(**{key: row[key] for key in Choices._fields})


def measure(record, data: Data, choices: Choices, epochs: int, seed: int, **what) -> None:
    """One training, as a row."""
    run = train(data, choices, epochs=epochs, seed=seed)
    judged, without_norms = {}, {}
    if run.averages:
        judge, stats = partial(accuracy, run.network, run.params, data=data), recalibrated(run, data)
        judged = dict(zip(AVERAGES, map(judge, (stats, *run.averages)), strict=True))
        if what["part"] == "main":
            without_norms = folded(run, stats, data)
    steps = reached(run.steps, run.accuracy)
    record.add(
        **what,
        seed=seed,
        **choices._asdict(),
        steps=run.steps,
        accuracy=run.accuracy,
        final=judged.get("recalibrated", run.accuracy[-1]),
        averages=judged,
        folded=without_norms,
        steps_to_target=steps,
        seconds_to_target=None if steps is None else float(np.interp(steps, run.steps, run.seconds)),
        seconds=run.seconds[-1],
        spike=spike(run.losses),
    )
    record.advance(f"{what['part']}: {what['name']}")


def reached(steps: list[int], accuracy: list[float]) -> float | None:
    """The step at which accuracy passes the target, between two evaluations on a straight line; None if it does not."""
    first = next((i for i, value in enumerate(accuracy) if value >= TARGET), None)
    if first is None or first == 0:
        return None if first is None else steps[0]
    return float(np.interp(TARGET, accuracy[first - 1 : first + 1], steps[first - 1 : first + 1]))


def spike(losses: list[float]) -> float | None:
    """How far a batch's loss rises above the median of those before it, in nats; None if a loss is not finite."""
    if not np.isfinite(losses).all():
        return None
    rises = [losses[i] - np.median(losses[i - WINDOW : i]) for i in range(WINDOW, len(losses))]
    return float(max(rises, default=0.0))


if __name__ == "__main__":
    main()
