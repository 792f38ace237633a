"""Does batch norm keep a network from memorizing what is only noise?

    python examples/memorizing.py [--epochs 60] [--seeds 10] [--seed 0] [--quick]

The perceptron of `networks.py` (three hidden layers of 100 ReLUs) on 897 digits, of which three in ten carry a wrong
label: nothing but memory can learn those. Batches of 32, SGD with momentum 0.9, none, batch and layer norm. After every
second epoch: the share of wrong labels that the network gives back in inference mode, and its accuracy on 450
validation and 450 test images, whose labels are right. Each run's best epoch, where one would stop, is the one with the
highest accuracy on the validation images. Each norm has its own rate, of three over one decade: the one with the
highest test accuracy at the best epochs, by the mean of four seeds that are used for nothing else.

A norm memorizes less than none if it gives back fewer of the wrong labels in at least three quarters of the seeds, and
more if it gives back more of them: at the end, and at each run's best epoch. The end depends on the rate too: the
second table has them all.

Lesson 2, benefit 4. Random labels: Zhang et al. 2017, arXiv:1611.03530.
"""

import jax.numpy as jnp
import numpy as np
from experiment import COLORS, middle, options, recording
from matplotlib import pyplot as plt
from networks import TRAIN, Data, Trainer, digits, perceptron

NORMS = ("none", "batch", "layer")
RATES = (0.01, 0.03, 0.1)
WRONG, TUNING = 0.3, 1000  # tuning seeds begin at --seed + 1000
EVERY = 2  # epochs between looks
CURVES = {"memorized": "train_accuracy", "accuracy": "accuracy", "valid": "valid_accuracy"}


def main() -> None:
    chosen = options(__doc__, "memorizing", seeds=10, epochs=60, least=EVERY)
    epochs = 4 if chosen.quick else chosen.epochs
    norms, tuning = (NORMS[:2], 1) if chosen.quick else (NORMS, 4)
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    seeds += range(chosen.seed + TUNING, chosen.seed + TUNING + tuning)
    runs = [(seed, rate) for seed in seeds for rate in RATES]
    with recording("memorizing", chosen, len(norms) * epochs) as record:
        data, wrong = mislabelled([seed for seed, _ in runs])
        for norm in norms:
            train(record, norm, runs, data, wrong, epochs)
        report(record, norms, chosen.seed + TUNING)


def train(record, norm: str, runs, data: Data, wrong: Data, epochs: int) -> None:
    """Adds a row for every run, with its curves."""
    settings = {"rate": jnp.array([rate for _, rate in runs], jnp.float32)}
    trainer = Trainer(perceptron(norm), data, settings, seeds=[seed for seed, _ in runs], batch_size=32)
    looks = []
    try:
        for epoch in range(1, epochs + 1):
            trainer.epoch()
            if epoch % EVERY == 0:
                looks.append(trainer.evaluate(on=wrong))
            record.advance(norm)
    finally:  # after Ctrl-C the looks so far are kept
        for i, (seed, rate) in enumerate(runs if looks else ()):
            curves = {name: np.array([look[key][i] for look in looks]) for name, key in CURVES.items()}
            record.add(norm=norm, seed=seed, rate=rate, **curves)


def mislabelled(seeds: list[int]) -> tuple[Data, Data]:
    """The digits with three of ten labels wrong; and the same with the mislabelled images alone."""
    data = digits(seeds, train=TRAIN)
    count = int(WRONG * data.x.shape[1])
    # Not [seed, epoch], which orders the batches.
    shifts = np.stack([np.random.default_rng([seed, 0, 1]).integers(1, 10, count) for seed in seeds])
    labels = data.y.at[:, :count].set((data.y[:, :count] + shifts) % 10)  # the split has shuffled the images
    data = data._replace(y=labels)
    return data, data._replace(x=data.x[:, :count], y=labels[:, :count])


def report(record, norms, tuning: int) -> None:
    rates, curves = {}, {}
    for norm in norms:
        tuned = lambda rate, norm=norm: at_best_epoch(curves_at(record, norm, rate, tuning, chosen=True), "accuracy")
        rates[norm] = max(RATES, key=lambda rate: tuned(rate).mean())
        curves[norm] = curves_at(record, norm, rates[norm], tuning)
    rows = []
    for norm, curve in curves.items():
        best, last = at_best_epoch(curve, "accuracy"), curve["accuracy"][:, -1]
        rows.append((norm, rates[norm], middle(curve["memorized"][:, -1]), middle(best), middle(last)))
    columns = ("norm", "rate", "wrong labels memorized, %", "test accuracy at the best epoch, %", "at the end, %")
    record.table("digits with three of ten labels wrong: median (range) of the seeds", columns, rows)
    by_rate = [
        (norm, *(middle(curves_at(record, norm, rate, tuning)["memorized"][:, -1]) for rate in RATES)) for norm in norms
    ]
    record.table("wrong labels memorized at the end, by rate, %", ("norm", *map(str, RATES)), by_rate)
    last = {norm: curve["memorized"][:, -1] for norm, curve in curves.items()}
    best = {norm: at_best_epoch(curve, "memorized") for norm, curve in curves.items()}
    record.claim(
        "Batch norm keeps a network from memorizing",
        source="lesson 2, benefit 4",
        measured="; ".join(
            f"wrong labels given back {when}: " + ", ".join(f"{norm} {middle(v)} %" for norm, v in values.items())
            for when, values in (("at the end", last), ("at the best epoch", best))
        ),
        verdict=f"at the end: {compared(last)}; at its best epoch: {compared(best)}",
    )
    draw(record, curves)


def curves_at(record, norm: str, rate: float, tuning: int, *, chosen: bool = False) -> dict[str, np.ndarray]:
    """In percent, [seeds, looks] of the seeds that are reported, or of those that chose the rate."""
    rows = [row for row in record.rows if row["norm"] == norm and row["rate"] == rate]
    rows = [row for row in rows if (row["seed"] >= tuning) == chosen]
    return {name: 100 * np.array([row[name] for row in rows]) for name in CURVES}


def at_best_epoch(curves: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Of every seed, at the first of its epochs with the highest accuracy on validation images."""
    stop = curves["valid"].argmax(1)[:, None]
    return np.take_along_axis(curves[name], stop, 1)[:, 0]


def compared(memorized: dict[str, np.ndarray]) -> str:
    less, more = (np.mean(sign * (memorized["none"] - memorized["batch"]) > 0) for sign in (1, -1))
    return "yes" if less >= 0.75 else "no, it memorizes more" if more >= 0.75 else "no difference"


def draw(record, curves) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (norm, curve), color in zip(curves.items(), COLORS, strict=False):
        for ax, values in zip(axes, (curve["memorized"], curve["accuracy"]), strict=True):
            epochs = EVERY * np.arange(1, values.shape[1] + 1)
            ax.plot(epochs, np.median(values, 0), color=color, label=norm)
            ax.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2)
    for ax, title in zip(axes, ("wrong labels given back, %", "test accuracy, %"), strict=True):
        ax.set(xlabel="passes over the images", ylabel=f"{title}: median and range")
        ax.grid(alpha=0.3)
    axes[0].legend(title="norm")
    record.picture(figure)


if __name__ == "__main__":
    main()
