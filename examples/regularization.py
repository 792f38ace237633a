"""Does batch norm regularize, as dropout does?

    python examples/regularization.py [--epochs 40] [--seeds 20] [--seed 0] [--quick]

The perceptron of `networks.py` (three hidden layers of 100 ReLUs) on 200 of the digits, few enough to be learned by
heart; SGD with momentum 0.9. The gap is accuracy on those 200 minus accuracy on the 1,597 others, in points, after the
same number of epochs. Every network trains at its own rate, of three over one decade: the one with the best accuracy on
the others (the mean) on six seeds that are used for nothing else, which also choose the best dropout.

1. Batches of 8, 32 and 128, with and without the norm. Small batches make statistics noisy, but steps too.
2. So in batches of 128 statistics are also taken over ghost batches of 8: as noisy as in batches of 8, while steps are
   those of batches of 128.
3. Dropout after each ReLU, with probabilities from 0 to 0.5, in batches of 32.

One network has a smaller gap than another if it has in at least three quarters of the seeds (the same images, first
weights and batches), and an equal one if neither has. Batch norm is compared with the dropout above 0 whose median gap
without the norm is nearest to its own on the six seeds. It acts like it if on the others both gaps are smaller than
without either, and equal. Dropout is needed less if, in as many seeds, the best dropout adds less test accuracy with
the norm than without. Nearly all networks learn the 200 images by heart, so that the gap is about the test error.

Lesson 2, benefit 4; lesson 4, benefits; Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.4: dropout can be removed or
weakened.
"""

import jax
import jax.numpy as jnp
import numpy as np
from experiment import COLORS, middle, options, recording
from matplotlib import pyplot as plt
from networks import Data, Network, Trainer, digits, perceptron

NORMS = ("none", "batch")
IMAGES, TUNING = 200, 1000  # tuning seeds begin at --seed + 1000
RATES = (0.01, 0.03, 0.1)


def main() -> None:
    chosen = options(__doc__, "regularization", seeds=20, epochs=40)
    epochs = 5 if chosen.quick else chosen.epochs
    drops = (0.0, 0.3) if chosen.quick else (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    cases = [(norm, size, None) for size in (8, 32, 128) for norm in NORMS] + [("batch", 128, 8)]
    if chosen.quick:
        cases = cases[:2]
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    seeds += range(chosen.seed + TUNING, chosen.seed + TUNING + (1 if chosen.quick else 6))
    with recording("regularization", chosen, (len(cases) + len(NORMS)) * epochs) as record:
        for norm, size, ghost in cases:
            network = perceptron(norm) if ghost is None else perceptron("ghost", ghost_size=ghost)
            about = {"part": "batch", "norm": norm, "batch": size, "ghost": ghost}
            train(record, network, seeds, size, epochs, [0.0], about)
        for norm in NORMS:
            train(record, with_dropout(norm), seeds, 32, epochs, drops, {"part": "dropout", "norm": norm, "batch": 32})
        report(record, cases, drops, chosen.seed + TUNING)


def with_dropout(norm: str) -> Network:
    """The perceptron with dropout after each ReLU; its probability is part of the setting, and then of the state."""

    def init(key, setting):
        params, stats = perceptron(norm).init(key, setting)
        return params, (stats, setting["drop"])

    def apply(params, state, x, training, key):
        stats, drop = state
        keys = iter(jax.random.split(key, len(params))) if training else None

        def activation(x):
            if not training:
                return jax.nn.relu(x)
            return jnp.where(jax.random.uniform(next(keys), x.shape) < drop, 0, jax.nn.relu(x) / (1 - drop))

        logits, stats = perceptron(norm, activation=activation).apply(params, stats, x, training, key)
        return logits, (stats, drop)

    return Network(init, apply)


def few_digits(seeds) -> Data:
    """All images that are not for training are for testing."""
    x, y, x_test, y_test, *_ = digits(seeds)
    rest = jnp.concatenate([x[:, IMAGES:], x_test], 1), jnp.concatenate([y[:, IMAGES:], y_test], 1)
    return Data(x[:, :IMAGES], y[:, :IMAGES], *rest)


def train(record, network, seeds, batch_size, epochs, drops, about) -> None:
    every = [(seed, rate, drop) for seed in seeds for rate in RATES for drop in drops]
    own, rates, probabilities = zip(*every, strict=True)
    trainer = Trainer(
        network,
        few_digits(own),
        {"rate": jnp.array(rates, jnp.float32), "drop": jnp.array(probabilities, jnp.float32)},
        seeds=own,
        batch_size=batch_size,
    )
    for _ in range(epochs):
        trainer.epoch()
        record.advance(f"{about['norm']}, batch {batch_size}")
    scores = trainer.evaluate() | {"losses": trainer.losses}
    for i, (seed, rate, drop) in enumerate(every):
        record.add(**about, seed=seed, rate=rate, drop=drop, **{name: values[i] for name, values in scores.items()})


class Case:
    """The reported seeds of one network, at its best rate."""

    def __init__(self, record, tuning: int, **about):
        rows = [row for row in record.rows if all(row.get(key) == value for key, value in about.items())]

        def scores(name, rate, chosen):
            return np.array([row[name] for row in rows if row["rate"] == rate and (row["seed"] >= tuning) != chosen])

        tuned = {rate: scores("accuracy", rate, False).mean() for rate in RATES}
        self.rate = max(RATES, key=tuned.__getitem__)
        self.tuned = tuned[self.rate]
        self.tuned_gap = np.median(
            100 * (scores("train_accuracy", self.rate, False) - scores("accuracy", self.rate, False))
        )
        self.test = 100 * scores("accuracy", self.rate, True)
        self.gap = 100 * scores("train_accuracy", self.rate, True) - self.test
        self.loss = scores("loss", self.rate, True) - scores("train_loss", self.rate, True)

    def cells(self) -> tuple[str, ...]:
        return f"{self.rate:.2g}", f"{np.median(self.test):.1f}", middle(self.gap), f"{np.median(self.loss):.3f}"

    def against(self, other: "Case") -> str:
        """Is this gap smaller, equal or larger?"""
        smaller, larger = np.mean(self.gap < other.gap), np.mean(self.gap > other.gap)
        return "smaller" if smaller >= 0.75 else "larger" if larger >= 0.75 else "equal"


def report(record, cases, drops, tuning) -> None:
    sizes = {case: Case(record, tuning, part="batch", norm=case[0], batch=case[1], ghost=case[2]) for case in cases}
    dropped = {
        (norm, drop): Case(record, tuning, part="dropout", norm=norm, drop=drop) for norm in NORMS for drop in drops
    }
    columns = ("best rate", "test accuracy %", "gap in points", "gap in loss")
    rows = [(norm, f"{size}, in ghosts of {g}" if g else size, *c.cells()) for (norm, size, g), c in sizes.items()]
    record.table("train and test, by batch size", ("norm", "batch", *columns), rows)
    rows = [(norm, drop, *case.cells()) for (norm, drop), case in dropped.items()]
    record.table("train and test, by dropout", ("norm", "dropout", *columns), rows)
    claim_regularizes(record, sizes)
    if ("batch", 128, 8) in sizes:
        claim_noise(record, sizes["batch", 128, None], sizes["batch", 128, 8])
    claim_dropout(record, dropped, drops)
    draw(record, sizes, dropped, drops)


def claim_regularizes(record, sizes) -> None:
    batches = sorted({size for _, size, _ in sizes})
    found = {size: sizes["batch", size, None].against(sizes["none", size, None]) for size in batches}
    gaps = {size: [f"{np.median(sizes[norm, size, None].gap):.1f}" for norm in ("batch", "none")] for size in batches}
    record.claim(
        "Batch norm regularizes: the gap between training and test is smaller",
        source="lesson 2, benefit 4; lesson 4, benefits",
        measured="; ".join(f"batch {size}: {a} points with it, {b} without" for size, (a, b) in gaps.items()),
        verdict=regularizes(found),
    )


def regularizes(found: dict[int, str]) -> str:
    """By the size of a batch: is the gap smaller, equal or larger with the norm?"""
    good = [str(size) for size, result in found.items() if result == "smaller"]
    return "yes" if len(good) == len(found) else f"only in batches of {', '.join(good)}" if good else "no"


def claim_noise(record, quiet: Case, noisy: Case) -> None:
    record.claim(
        "It is the noise of the batch's statistics that regularizes",
        source="lesson 4, benefits",
        measured=f"batches of 128: a gap of {middle(quiet.gap)} points; in ghosts of 8: {middle(noisy.gap)}",
        verdict={"smaller": "yes", "equal": "not measurably", "larger": "no"}[noisy.against(quiet)],
    )


def claim_dropout(record, dropped, drops) -> None:
    plain, normed = dropped["none", 0.0], dropped["batch", 0.0]
    best = {norm: max(drops, key=lambda drop: dropped[norm, drop].tuned) for norm in NORMS}
    like = nearest({drop: dropped["none", drop].tuned_gap for drop in drops}, normed.tuned_gap)
    record.claim(
        "Batch norm acts like dropout",
        source="lesson 4, benefits",
        measured=f"a gap of {middle(normed.gap)} points with it, {middle(plain.gap)} without, "
        f"{middle(dropped['none', like].gap)} without and with dropout of {like}",
        verdict=acts_like(like, dropped["none", like], normed, plain),
    )
    gains = {norm: dropped[norm, best[norm]].test - dropped[norm, 0.0].test for norm in NORMS}
    gain = {norm: np.median(values) for norm, values in gains.items()}
    record.claim(
        "With batch norm, dropout is needed less",
        source="Ioffe & Szegedy 2015, arXiv:1502.03167, sections 3.4 and 4.2.1",
        measured="; ".join(
            f"{norm}: dropout of {best[norm]} adds {gain[norm]:.1f} points of test accuracy" for norm in NORMS
        ),
        verdict=needed_less(gains["none"], gains["batch"]),
    )


def nearest(gaps: dict[float, float], gap: float) -> float:
    """The dropout with such a gap; 0 is none."""
    return min((drop for drop in gaps if drop > 0), key=lambda drop: abs(gaps[drop] - gap))


def acts_like(drop: float, dropped: Case, normed: Case, plain: Case) -> str:
    """Like the nearest dropout: both gaps are smaller than without either, and equal."""
    if normed.against(plain) != "smaller":
        return "no"
    if dropped.against(plain) != "smaller":
        return f"its gap is smaller, as that with dropout of {drop}, the nearest, is not"
    beside = normed.against(dropped)
    if beside != "equal":
        return f"its gap is smaller, as dropout's is, and {beside} than with dropout of {drop}, the nearest"
    return f"yes, like dropout of {drop}"


def needed_less(without: np.ndarray, normed: np.ndarray) -> str:
    """By what dropout adds, seed by seed."""
    less, more = (np.mean(sign * (without - normed) > 0) for sign in (1, -1))
    return "yes" if less >= 0.75 else "no" if more >= 0.75 else "not measurably"


def draw(record, sizes, dropped, drops) -> None:
    """Seed by seed, since ranges over seeds overlap where one network is ahead in every one of them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained", sharey=True)
    batches = sorted({size for _, size, _ in sizes})
    for color, label in zip(COLORS, ("no norm", "batch norm", "in ghosts of 8"), strict=False):
        left.plot([], [], "o", color=color, label=label)
    for i, size in enumerate(batches):
        plain = sizes["none", size, None]
        differences(left, i, sizes["batch", size, None].gap - plain.gap, COLORS[1])
        if ("batch", size, 8) in sizes:
            differences(left, i + 0.25, sizes["batch", size, 8].gap - plain.gap, COLORS[2])
    for i, drop in enumerate(drops):
        for norm, shift, color in zip(NORMS, (-0.15, 0.15), COLORS, strict=False):
            if (norm, drop) != ("none", 0.0):  # nothing, by definition
                differences(right, i + shift, dropped[norm, drop].gap - dropped["none", 0.0].gap, color)
    left.plot([], [], "k_", markersize=12, markeredgewidth=2, label="median")
    left.set(xlabel="batch size", title="beside no norm at the same batch size")
    left.set_ylabel("gap minus the other's, points: every seed")
    left.set_xticks(range(len(batches)), batches)
    right.set(xlabel="dropout", title="beside no norm without dropout")
    right.set_xticks(range(len(drops)), drops)
    for ax in (left, right):
        ax.axhline(0, color="gray", linewidth=0.8)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    record.picture(figure)


def differences(ax, at: float, values: np.ndarray, color: str) -> None:
    ax.plot(np.full(len(values), at), values, "o", color=color, alpha=0.35, markersize=5, markeredgewidth=0)
    ax.plot(at, np.median(values), "_", color=color, markersize=18, markeredgewidth=2.5)


if __name__ == "__main__":
    main()
