"""The normalization shop: which norm at which batch size?

    python examples/which_norm.py [--epochs 10] [--seeds 3] [--seed 0] [--quick]

One small convolutional network (8, 16 and 32 features on 8 x 8, 4 x 4 and 2 x 2 places) on 768 digits, with six norms,
two layers that squash instead (dynamic tanh and erf) and none, at batch sizes from 1 to 256: the figure of the group
norm paper in small. As there, every run sees each image equally often, so large batches take fewer steps (7,680 at
batch size 1, 30 at 256), and the learning rate is proportional to the batch size. Unlike there, each of the nine has at
every batch size the best of five such rates, chosen by its median accuracy on 450 validation images; reported is
accuracy on 450 other images at that rate. SGD with momentum 0.9. Groups have 8 features. Ghosts have 8 images: up to
there ghost norm is batch norm, and not run again. One image still has places to average over: there batch norm trains
as instance norm. Batch renorm goes from batch norm's limits to the paper's (r_max 3, d_max 5) within 100 updates.

At every batch size the best norm is the one with the highest median test accuracy. How far another is behind it is the
median over seeds of the difference (the same images, weights and batches); within a point, about the standard error of
450 images, it counts as best too. Layer norm is for varying batch sizes if it loses less than batch norm, by a point,
where each loses most. A rule holds at a batch size where a norm that it advises counts as best. Larger batches help
batch norm against a size below 32 if there it lies more than a point farther behind the best norm than at any size from
32 on: "yes" if that is so at all of these sizes, else they are named. Leaves results.json and which_norm.png in
runs/which_norm/.

Source: Wu & He 2018, arXiv:1803.08494, figure 1; the rules are lesson 1's, the question about large batches lesson 2's.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from experiment import COLORS, options, recording
from matplotlib import pyplot as plt
from networks import Network, Trainer, convolve, digits, init_norm, norm

NORMS = ("none", "batch", "ghost", "renorm", "group", "layer", "instance", "tanh", "erf")
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # at batch size 32
SIZES = (1, 4, 8, 32, 256)
GHOST = 8
FEATURES = (8, 16, 32)
CLOSE = 1.0  # percentage point


def pyramid(name: str) -> Network:
    """Three convolutions, each with half the places of the one before and twice the features; mean; a dense layer."""

    def init(key, setting):
        layers, statistics, before = [], [], 1
        for layer_key, features in zip(jax.random.split(key, len(FEATURES)), FEATURES, strict=True):
            params, stats = init_norm(name, features)
            kernel = jax.random.normal(layer_key, (9 * before, features)) * np.sqrt(2 / (9 * before))
            layers.append({"kernel": kernel} | params)
            statistics.append(stats)
            before = features
        last = {"kernel": jax.random.normal(key, (before, 10)) * np.sqrt(1 / before), "bias": jnp.zeros(10)}
        return [*layers, last], statistics

    def apply(params, statistics, x, training, key):
        new = []
        for i, (layer, stats) in enumerate(zip(params[:-1], statistics, strict=True)):
            x = convolve(x, layer["kernel"], stride=2 if i else 1)
            x, stats = norm(name, layer, stats, x, training, ghost_size=GHOST)
            x = jax.nn.relu(x)
            new.append(stats)
        return x.mean((1, 2)) @ params[-1]["kernel"] + params[-1]["bias"], new

    return Network(init, apply)


def main() -> None:
    chosen = options(__doc__, "which_norm", seeds=3, epochs=10)
    epochs, images, norms, sizes, rates = chosen.epochs, 768, NORMS, SIZES, RATES
    if chosen.quick:
        epochs, images, norms, sizes, rates = 1, 128, ("none", "batch", "layer"), (4, 32), (0.1,)
    runs = [(seed, rate) for seed in range(chosen.seed, chosen.seed + chosen.seeds) for rate in rates]
    cells = [(name, size) for name in norms for size in sizes if name != "ghost" or size > GHOST]
    with recording("which_norm", chosen, len(cells)) as record:
        seeds = [seed for seed, _ in runs]
        data = digits(seeds, (8, 8, 1), train=images)
        base = jnp.array([rate for _, rate in runs], jnp.float32)
        networks = {name: pyramid(name) for name in norms}

        def accuracies(cell):
            name, size = cell
            settings = {"rate": base * size / 32}
            trainer = Trainer(networks[name], data, settings, seeds=seeds, batch_size=size)
            for _ in range(epochs):
                trainer.epoch()
            found = trainer.evaluate(train=False)
            return zip(found["accuracy"], found["valid_accuracy"], trainer.losses, strict=True)

        # Most of the time XLA compiles, one core for each program: two at once.
        with ThreadPoolExecutor(2) as pool:
            try:
                for (name, size), found in zip(cells, pool.map(accuracies, cells), strict=True):
                    for (seed, rate), (accuracy, valid, losses) in zip(runs, found, strict=True):
                        scores = {"accuracy": accuracy, "valid": valid, "losses": losses}
                        record.add(norm=name, batch_size=size, seed=seed, rate=rate, **scores)
                    record.advance(f"{name}, batch size {size}")
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the rest is not begun
        report(record, norms, sizes)


def at_best_rate(record, name: str, size: int) -> np.ndarray:
    """Test accuracies of the seeds at the learning rate whose median on validation images is highest."""
    name = "batch" if name == "ghost" and size <= GHOST else name
    return record.values("accuracy", norm=name, batch_size=size, rate=best_rate(record, name, size))


def best_rate(record, name: str, size: int) -> float:
    name = "batch" if name == "ghost" and size <= GHOST else name
    return record.best("rate", "valid", norm=name, batch_size=size)


def report(record, norms, sizes) -> None:
    accuracy = {(name, size): at_best_rate(record, name, size) for name in norms for size in sizes}
    best = {size: max((accuracy[name, size] for name in norms), key=np.median) for size in sizes}
    behind = {name: {size: lag(best[size], accuracy[name, size]) for size in sizes} for name in norms}

    def cell(name: str, size: int) -> str:
        low, middle, high = 100 * np.percentile(accuracy[name, size], (0, 50, 100))
        star = " *" if name in equals(behind, size) else ""
        return "as batch" if name == "ghost" and size <= GHOST else f"{middle:.1f} ({low:.1f} to {high:.1f}){star}"

    rows = [(name, *(cell(name, size) for size in sizes)) for name in norms]
    rates = sorted({row["rate"] for row in record.rows})
    own = [(name, size) for name in norms for size in sizes if name != "ghost" or size > GHOST]
    at_edge = [best_rate(record, name, size) in (rates[0], rates[-1]) for name, size in own]
    title = "test accuracy in percent by batch size: median (range) of the seeds; * within a point of the best"
    edges = f"the best of the {len(rates)} rates is the lowest or the highest in {sum(at_edge)} of {len(at_edge)} cells"
    record.table(f"{title}; {edges}", ("norm", *map(str, sizes)), rows)
    picture(record, accuracy, norms, sizes)
    big = [size for size in sizes if size >= 32]
    rule(record, "Big batch (32 and more): use batch norm", {"batch"}, behind, big)
    small = [size for size in sizes if size <= 8]
    rule(record, "Small batch (1 to 8): use group or layer norm", {"group", "layer"}, behind, small)
    record.claim(
        "Batch norm works better with larger batches",
        source="lesson 2, question 1",
        measured="points of test accuracy behind the best norm: "
        + ", ".join(f"{points:.1f} at batch size {size}" for size, points in behind["batch"].items()),
        verdict=larger(behind["batch"], sizes),
    )
    steady(record, behind)


def lag(best: np.ndarray, accuracy: np.ndarray) -> float:
    """Percentage points behind, seed by seed: the median. Both saw the same images in the same batches."""
    return 100 * float(np.median(best - accuracy))


def larger(points: dict[int, float], sizes) -> str:
    """At which small sizes is it farther behind than at the large ones, 32 and more, at their worst?"""
    enough, small = max(points[size] for size in sizes if size >= 32) + CLOSE, [size for size in sizes if size < 32]
    behind = [size for size in small if points[size] > enough]
    if behind == small:
        return "yes"
    return f"only against batches of {', '.join(map(str, behind))}" if behind else "not here"


def steady(record, behind) -> None:
    """How much each loses at the size where it loses most: layer norm beside batch norm, as the lesson has it."""
    worst = {name: max(points.values()) for name, points in behind.items()}
    record.claim(
        "Layer norm is for batch sizes that vary",
        source="lesson 2, the section on layer norm",
        measured="points of test accuracy behind the best norm, at the batch size where that is most: "
        + ", ".join(f"{name} {points:.1f}" for name, points in worst.items()),
        verdict=loses_less(worst),
    )


def loses_less(worst: dict[str, float]) -> str:
    least = [name for name, points in worst.items() if points < worst["layer"] - CLOSE]
    verdict = "it loses less than batch norm" if worst["layer"] < worst["batch"] - CLOSE else "no"
    return f"{verdict}; {', '.join(least)} less still" if least else verdict


def equals(behind, size: int) -> list[str]:
    """The norms that count as best at this batch size."""
    return [name for name, points in behind.items() if points[size] <= CLOSE]


def rule(record, claim: str, advised: set[str], behind, sizes) -> None:
    named = {*advised, *as_good(advised, behind, sizes), "none", "batch"}
    listed = (
        f"{name} {', '.join(f'{points[size]:.1f}' for size in sizes)}"
        for name, points in behind.items()
        if name in named
    )
    where = f"points of test accuracy behind the best norm at batch size {', '.join(map(str, sizes))}"
    record.claim(
        claim, source="lesson 1", measured=f"{where}: {'; '.join(listed)}", verdict=holds(advised, behind, sizes)
    )


def as_good(advised: set[str], behind, sizes) -> list[str]:
    """What else counts as best at all of these sizes."""
    return [name for name in behind if name not in advised and all(name in equals(behind, size) for size in sizes)]


def holds(advised: set[str], behind, sizes) -> str:
    """Where an advised norm counts as best."""
    where, others = [size for size in sizes if advised & set(equals(behind, size))], as_good(advised, behind, sizes)
    if where == sizes:
        return f"yes; as good: {', '.join(others)}" if others else "yes"
    verdict = f"only at batch size {', '.join(map(str, where))}" if where else "no"
    return f"{verdict}; everywhere among the best: {', '.join(others)}" if others else verdict


def picture(record, accuracy, norms, sizes) -> None:
    """One panel for each norm: itself in colour, the others' medians grey."""
    errors = {}
    for name in norms:
        where = [size for size in sizes if name != "ghost" or size >= GHOST]
        errors[name] = where, 100 * (1 - np.stack([accuracy[name, size] for size in where]))
    figure, panels = plt.subplots(
        -(-len(norms) // 3), 3, figsize=(9, 8), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for name, axes in itertools.zip_longest(norms, panels.flat):
        if name is None:
            axes.axis("off")
            continue
        for other, (where, values) in errors.items():
            if other != name:
                axes.plot(where, np.median(values, 1), color="gray", linewidth=0.6, alpha=0.6)
        where, values = errors[name]
        axes.fill_between(where, values.min(1), values.max(1), color=COLORS[0], alpha=0.25, linewidth=0)
        axes.plot(where, np.median(values, 1), "o-", color=COLORS[0], markersize=4)
        axes.set(xscale="log", yscale="log", title=name)
        axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    ticks = [error for error in (1, 2, 3, 5, 10, 20, 30, 50, 90) if low <= error <= high]
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_yticks(ticks, map(str, ticks))
    for axes in panels.flat:
        axes.minorticks_off()
    figure.supxlabel("batch size")
    figure.supylabel("test error, %")
    figure.suptitle("each norm at its best learning rate: median and range of the seeds; grey: the others' medians")
    record.picture(figure)


if __name__ == "__main__":
    main()
