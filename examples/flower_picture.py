"""The flower challenge's picture: curves, learning rates, what each choice gained, and some flowers.

Not a program.
"""

import numpy as np
from experiment import COLORS
from matplotlib import pyplot as plt

STRATEGY = {"part": "main", "name": "strategy"}  # the rows of its seeds
NO_NORMS = {"part": "main", "name": "no norms"}
PATIENT = {"part": "longer"}


def picture(record, data, names, target: float, rates, changes) -> None:
    """`rates` are rates and accuracies by network; `changes` are what the choices gained."""
    figure = plt.figure(figsize=(12, 7.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.6, 1))
    curves, every, choices = upper.subplots(1, 3, width_ratios=(1.2, 1, 1))
    _draw_curves(record, curves, target)
    for (name, row), marker in zip(rates.items(), "os^", strict=True):
        color = COLORS[0] if name == "strategy" else COLORS[1]
        every.plot(*row, color=color, marker=marker, markersize=4, label=name, linewidth=1)
    every.set(xscale="log", xlabel="highest learning rate", ylabel="accuracy at the end", title="every learning rate")
    every.set_ylim(0, 1.3)  # room for the legend
    every.legend(fontsize="small", loc="upper left")
    for place, change in enumerate(reversed(changes)):
        choices.plot(100 * change.accuracy, np.full(len(change.accuracy), place), "o", color=COLORS[0], alpha=0.4)
    labels = [f"{change.choice},\nnot {change.instead}" for change in reversed(changes)]
    choices.set_yticks(range(len(changes)), labels, fontsize="small")
    choices.set_xscale("symlog", linthresh=1)
    choices.axvline(0, color="gray", linewidth=0.8)
    choices.set(xlabel="points of accuracy gained", title="each choice, seed by seed")
    choices.xaxis.set_major_formatter("{x:g}")
    shown = range(min(10, len(names)))
    for axes, (row, label) in zip(
        lower.subplots(2, len(shown)).flat, [(row, label) for row in range(2) for label in shown], strict=True
    ):
        found = np.flatnonzero(data.y == label)
        axes.imshow(data.x[found[min(row, len(found) - 1)]])
        axes.axis("off")
        if row == 0:
            axes.set_title(names[label], fontsize="small")
    record.picture(figure)
    plt.close(figure)


def _draw_curves(record, axes, target: float) -> None:
    groups = (
        (STRATEGY, COLORS[0], "-", "strategy"),
        (NO_NORMS, COLORS[1], "-", "no norms"),
        (PATIENT, COLORS[1], "--", "no norms, more epochs"),
    )
    for where, color, line, label in groups:
        steps, accuracy = record.values("steps", **where)[0], record.values("accuracy", **where)
        axes.fill_between(steps, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, np.median(accuracy, 0), color=color, linestyle=line, label=label)
    axes.axhline(target, color="gray", linewidth=0.8)
    axes.set(xlabel="steps of 64 images", ylabel="test accuracy", title="median and range of the seeds")
    axes.legend(fontsize="small", loc="lower right")
