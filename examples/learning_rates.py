"""Experiment 2: how wide is the range of learning rates that trains, with and without batch norm?

    python examples/learning_rates.py [--epochs 22] [--seeds 5] [--seed 0] [--quick]

The perceptron of `networks.py` (three hidden layers of 100) on 897 digits, SGD with momentum 0.9, learning rates over
five decades, several seeds each; all of them train side by side. A learning rate trains if test accuracy reaches 90% in
every seed, and the range that trains is the longest stretch of rates without one that does not. Training is less
sensitive with the norm if its range is half a decade longer, in steps between rates, a little if it is longer at all.
The best rate is the one with the highest median accuracy on 450 validation images; reported is test accuracy there.
Leaves results.json and learning_rates.png in runs/learning_rates/.

Lesson 2, experiment 2 and benefit 3.
"""

import jax.numpy as jnp
import numpy as np
from experiment import COLORS, options, recording, wider
from matplotlib import pyplot as plt
from networks import TRAIN, Trainer, digits, grid_steps, per_decade, perceptron, trains

NORMS = ("none", "batch", "layer")
GOOD = 0.9


def main() -> None:
    chosen = options(__doc__, "learning_rates", epochs=22)
    epochs = 2 if chosen.quick else chosen.epochs
    rates = np.logspace(-4, 1, 6 if chosen.quick else 21)
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    every = [(seed, rate) for seed in seeds for rate in rates]
    with recording("learning_rates", chosen, len(NORMS) * epochs) as record:
        data = digits([seed for seed, _ in every], train=TRAIN)
        settings = {"rate": jnp.array([rate for _, rate in every], jnp.float32)}
        for name in NORMS:
            trainer = Trainer(
                perceptron(name),
                data,
                settings,
                seeds=[seed for seed, _ in every],
                batch_size=60,
            )
            for _ in range(epochs):
                trainer.epoch()
                record.advance(name)
            found, losses = trainer.evaluate(train=False), trainer.losses
            for i, (seed, rate) in enumerate(every):
                scores = {"accuracy": found["accuracy"][i], "valid": found["valid_accuracy"][i], "losses": losses[i]}
                record.add(norm=name, seed=seed, rate=rate, **scores)
        report(record, rates)


def report(record, rates) -> None:
    rows, steps, every = [], {}, per_decade(rates)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in zip(NORMS, COLORS, strict=False):
        values = np.array([record.values("accuracy", norm=name, rate=rate) for rate in rates])
        good = values.min(1) >= GOOD
        steps[name], stretch = grid_steps(good), rates[trains(good)]
        best = record.best("rate", "valid", norm=name)
        reached = record.values("accuracy", norm=name, rate=best)
        span = f"{stretch[0]:.2g} to {stretch[-1]:.2g}" if len(stretch) else "none"
        rows.append((name, span, f"{steps[name] / every:g}", f"{best:.2g}", f"{np.median(reached):.1%}"))
        axes.fill_between(rates, values.min(1), values.max(1), color=color, alpha=0.2)
        axes.plot(rates, np.median(values, 1), color=color, label=name)
    axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", title="median and range of the seeds")
    axes.axhline(GOOD, color="gray", linewidth=0.8)
    axes.legend()
    record.picture(figure)
    columns = ("norm", f"rates at which every seed reaches {GOOD:.0%}", "decades", "best rate", "median accuracy there")
    record.table("learning rates that train", columns, rows)
    record.claim(
        "Batch norm makes training much less sensitive to the learning rate",
        source="lesson 2, experiment 2 and benefit 3",
        measured=f"{steps['batch'] / every:g} decades of learning rates train with it, "
        f"{steps['none'] / every:g} without",
        verdict=wider(steps["batch"] - steps["none"], every),
    )


if __name__ == "__main__":
    main()
