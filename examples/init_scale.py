"""How careful must the initialization be, with and without batch norm?

    python examples/init_scale.py [--epochs 15] [--seeds 3] [--seed 0] [--quick]

The perceptron of `networks.py` (three hidden layers of 100 ReLUs) on 897 digits, batches of 60, SGD with momentum 0.9.
All weights of He's initialization, those of the last layer too, are multiplied by one number, over four decades from
0.01 to 100; each with five learning rates over four decades. A scale trains if test accuracy reaches 90% in every seed,
judged in two ways: at the one rate that is best at scale 1, as a person who changes nothing else would see it, and at
whichever rate is best for the scale. Best is the rate with the highest median accuracy on 450 validation images, which
are neither for training nor for testing.

The difference is not an accident. Batch norm makes the output of a hidden layer independent of the scale of its
weights, so large weights cannot explode, but their gradient shrinks as 1 / scale and their relative change per step as
1 / scale^2: weights that start 100 times too large learn 10,000 times too slowly at the same rate. What comes last,
without a norm after it, is as sensitive as ever.

The range that trains is the longest stretch of scales without one that does not. Verdict: "yes" if with the norm it is
at least half a decade longer than without, in steps between scales, "a little" if it is longer, else "no". What was
found is in examples/README.md.

Lesson 4, benefits.
"""

import jax.numpy as jnp
import numpy as np
from experiment import COLORS, options, recording, wider
from matplotlib import pyplot as plt
from networks import TRAIN, Trainer, digits, grid_steps, per_decade, perceptron, trains

NORMS = ("none", "batch", "layer")
GOOD = 0.9


def main() -> None:
    chosen = options(__doc__, "init_scale", seeds=3, epochs=15)
    epochs = 3 if chosen.quick else chosen.epochs
    scales = np.logspace(-2, 2, 5 if chosen.quick else 17)
    rates = np.logspace(-2, -1, 2) if chosen.quick else np.logspace(-3, 1, 5)
    norms = NORMS[:2] if chosen.quick else NORMS
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    every = [(seed, scale, rate) for seed in seeds for scale in scales for rate in rates]
    with recording("init_scale", chosen, len(norms) * epochs) as record:
        data = digits([seed for seed, _, _ in every], train=TRAIN)
        settings = {"init_scale": jnp.array([scale for _, scale, _ in every], jnp.float32)}
        settings["rate"] = jnp.array([rate for _, _, rate in every], jnp.float32)
        for name in norms:
            trainer = Trainer(
                perceptron(name),
                data,
                settings,
                seeds=[seed for seed, _, _ in every],
                batch_size=60,
            )
            for _ in range(epochs):
                trainer.epoch()
                record.advance(name)
            found, losses = trainer.evaluate(train=False), trainer.losses
            for i, (seed, scale, rate) in enumerate(every):
                scores = {"accuracy": found["accuracy"][i], "valid": found["valid_accuracy"][i], "losses": losses[i]}
                record.add(norm=name, seed=seed, scale=float(scale), rate=float(rate), **scores)
        report(record, norms, scales, rates)


def report(record, norms, scales, rates) -> None:
    ways = ("at the rate that is best at scale 1", "at the best rate for the scale")
    rows, widths, every = [], {way: {} for way in ways}, per_decade(scales)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for norm, color in zip(norms, COLORS, strict=False):
        values, valid = (  # [scales, rates, seeds]
            np.array([[record.values(key, norm=norm, scale=s, rate=r) for r in rates] for s in scales])
            for key in ("accuracy", "valid")
        )
        best = np.median(valid, 2).argmax(1)
        at_one = best[len(scales) // 2]
        for way, ax, choice in zip(ways, axes, (np.full_like(best, at_one), best), strict=True):
            accuracy = np.take_along_axis(values, choice[:, None, None], 1)[:, 0]
            good = accuracy.min(1) >= GOOD
            widths[way][norm], stretch = grid_steps(good), scales[trains(good)]
            span = f"{stretch[0]:.2g} to {stretch[-1]:.2g}" if len(stretch) else "none"
            rate = f"{rates[at_one]:.2g}" if way == ways[0] else "tuned"
            rows.append((norm, rate, span, f"{widths[way][norm] / every:g}"))
            ax.plot(scales, np.median(accuracy, 1), "o-", color=color, label=norm, markersize=4)
            ax.fill_between(scales, accuracy.min(1), accuracy.max(1), color=color, alpha=0.2)
    for way, ax in zip(ways, axes, strict=True):
        ax.set(xscale="log", xlabel="weights, times He's", title=way)
        ax.axhline(GOOD, color="gray", linewidth=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), title="norm", loc="outside right center")
    axes[0].set_ylabel("test accuracy: median and range")
    record.picture(figure)
    columns = (
        "norm",
        "rate",
        f"scales at which every seed reaches {GOOD:.0%}",
        "decades of 4",
    )
    record.table("scales of the first weights that train", columns, rows)
    for way, steps in widths.items():
        record.claim(
            f"Batch norm makes training less sensitive to initialization, {way}",
            source="lesson 4, benefits",
            measured="; ".join(f"{norm}: {n / every:g} of 4 decades of scales train" for norm, n in steps.items()),
            verdict=wider(steps["batch"] - steps["none"], every),
        )


if __name__ == "__main__":
    main()
