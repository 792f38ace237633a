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

Every choice is changed alone and run with the first five seeds. It mattered if all seeds agree and the median change
exceeds the standard deviation of the strategy's seeds. Momentum and recalibration do not touch training, so each run
keeps several averages of its own and is judged with each of them.

The network without norms is tuned too: every rate of the sweep with SGD from He's weights, with SGD from a branch that
ends in zeros (the heart of Fixup, arXiv:1901.09321), and with Adam. All runs of the sweep have as many epochs as the
others, and each network then runs at its best. As that is short for it, it also gets two and four times the epochs.

A seed converges if its network reaches 95% of the test images before its epochs are over. A spike is the loss of a
batch over the median of the 20 before it. A learning rate is usable if it reaches nine tenths of the network's best.

Images are generated (`flower_images.py`), or your own: `--data FOLDER` takes a folder of class folders, or Oxford 102
Flowers as published (jpg/, imagelabels.mat, setid.mat). Leaves results.json and flowers.png in runs/flowers/. Source:
lesson 1, the ultimate challenge at its end.
"""

from functools import partial
from pathlib import Path

import numpy as np
from experiment import options, recording
from flower_folders import photographs
from flower_images import SPECIES, flowers
from flower_network import BATCH, MOMENTA, Choices, Data, accuracy, recalibrated, train
from flower_report import report

TARGET = 0.95
PAIRED = 5  # seeds of each ablation
LONGER = (2, 4)  # times the epochs, for the network without norms
WINDOW = 20  # batches that a spike is compared with
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of SGD; Adam's are a hundredth

STRATEGY = Choices()
TUNED = {
    "strategy": STRATEGY,
    "no norms": Choices(order="none", zero_last=False),
    "no norms, zero branch": Choices(order="none"),
    "no norms, Adam": Choices(order="none", zero_last=False, optimizer="adam"),
}
ABLATIONS = {
    "norm before ReLU": ("after it", {"order": "relu-norm"}),
    "last scale from zero": ("from one", {"zero_last": False}),
    "decay spares norms": ("decays all", {"spare_norms": False}),
    "warm-up": ("none", {"warm_up": 0.0}),
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
        train_count, tests = (640, 200) if chosen.quick else (chosen.images, 2000)
        return Data(*images(chosen.seed, train_count), *images(10**6 + chosen.seed, tests)), [s.name for s in SPECIES]
    *arrays, names = photographs(chosen.data, chosen.size or 64, chosen.seed)
    if len(arrays[0]) < BATCH:
        raise ValueError(
            f"--data needs {BATCH} images to learn from, one batch; got {len(arrays[0])} in {chosen.data}."
        )
    return Data(*arrays), names


def main() -> None:
    chosen = options(__doc__, "flowers", seeds=20, extend=extend)
    try:
        data, names = load(chosen)
    except ValueError as error:
        raise SystemExit(f"flowers: {error}") from None
    epochs = 1 if chosen.quick else chosen.epochs
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    rates = RATES[1:4] if chosen.quick else RATES
    paired, few = seeds[:PAIRED], seeds[:3]
    runs = len(TUNED) * len(rates) + 2 * len(seeds) + len(ABLATIONS) * len(paired) + len(LONGER) * len(few)
    with recording("flowers", chosen, runs) as record:
        best = {}
        for name, choices in TUNED.items():
            for rate in rates:
                rate = rate / 100 if choices.optimizer == "adam" else rate
                tried = choices._replace(rate=rate)
                row = measure(record, data, tried, epochs, chosen.seed, part="sweep", name=name)
                if name not in best or row["final"] > best[name][0]:
                    best[name] = row["final"], tried
        without = max((best[name] for name in TUNED if name != "strategy"), key=lambda pair: pair[0])[1]
        strategy = best["strategy"][1]
        for seed in seeds:
            measure(record, data, strategy, epochs, seed, part="main", name="strategy")
            measure(record, data, without, epochs, seed, part="main", name="no norms")
        for times in LONGER:
            for seed in few:
                measure(record, data, without, epochs * times, seed, part="longer", name="no norms", times=times)
        for name, (_, change) in ABLATIONS.items():
            for seed in paired:
                measure(record, data, strategy._replace(**change), epochs, seed, part="ablation", name=name)
        alternatives = {name: instead for name, (instead, _) in ABLATIONS.items()}
        report(record, data, names, target=TARGET, ablations=alternatives, averages=AVERAGES)


def measure(record, data: Data, choices: Choices, epochs: int, seed: int, **what) -> dict:
    """One training, as a row."""
    run = train(data, choices, epochs=epochs, seed=seed)
    judged = {}
    if run.averages:
        judge = partial(accuracy, run.network, run.params, data=data)
        judged = dict(zip(AVERAGES, map(judge, (recalibrated(run, data), *run.averages)), strict=True))
    steps = reached(run.steps, run.accuracy)
    record.add(
        **what,
        seed=seed,
        **choices._asdict(),
        steps=run.steps,
        accuracy=run.accuracy,
        final=judged.get("recalibrated", run.accuracy[-1]),
        averages=judged,
        steps_to_target=steps,
        seconds_to_target=None if steps is None else float(np.interp(steps, run.steps, run.seconds)),
        seconds=run.seconds[-1],
        spike=spike(run.losses),
    )
    record.advance(f"{what['part']}: {what['name']}")
    return record.rows[-1]


def reached(steps: list[int], accuracy: list[float]) -> float | None:
    """The step at which accuracy passes the target, between two evaluations on a straight line; None if it does not."""
    first = next((i for i, value in enumerate(accuracy) if value >= TARGET), None)
    if first is None or first == 0:
        return None if first is None else steps[0]
    return float(np.interp(TARGET, accuracy[first - 1 : first + 1], steps[first - 1 : first + 1]))


def spike(losses: list[float]) -> float | None:
    """The worst batch loss over the median of those before it; None if a loss is not finite."""
    before = np.lib.stride_tricks.sliding_window_view(losses, WINDOW)[:-1] if len(losses) > WINDOW else np.ones((0, 1))
    worst = np.max(losses[WINDOW:] / np.median(before, axis=1), initial=1.0)
    return float(worst) if np.isfinite(losses).all() else None


if __name__ == "__main__":
    main()
