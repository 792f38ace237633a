"""Experiment 1: does batch norm train a network 3 to 5 times faster?

    python examples/with_and_without.py [--steps 400] [--seeds 8] [--seed 0] [--quick]

Two perceptrons on the digits (three hidden layers of 100, batches of 60, SGD with momentum 0.9), with and without batch
norm: one of ReLUs with He's initialization, one of sigmoids with four times Glorot's. How many steps, and how many
seconds, until the network in inference mode gets 95% of the test images right, at three looks in a row, one every four
steps?

Both are compared twice: at the same learning rate, the one that is best *without* the norm, and each at its own best
rate. Best is the rate, of eight over two and a half decades, with the fewest steps (the median) on twelve seeds that
are used for nothing else. Seconds are steps times the time of one step of that network trained alone, the fastest of
many epochs, compiled with XLA's usual options; evaluation is not counted. The norm's share of a step depends on the
width of the layers, so width 500 is timed too.

A factor is steps without over steps with the norm, on the same images, from the same weights and in the same batches:
"yes" if its median is from 3 to 5, "less" and "more" beyond, "no" below 1.1; and not in every seed if one of them is
below 1. A seed in which neither gets there has no factor, counts as 1, and as a seed in which it is not faster. Higher
rates can be used if the highest at which all seeds get there is higher with the norm, of those eight. `--quick` leaves
out the sigmoids and most rates.

Lesson 2, experiment 1; lesson 4, benefits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from experiment import COLORS, at_least, middle, options, recording
from matplotlib import pyplot as plt
from networks import Trainer, digits, perceptron, steps_to

NETWORKS = {"relu": (jax.nn.relu, 2.0), "sigmoid": (jax.nn.sigmoid, 16.0)}
NORMS = ("none", "batch")
GOOD, EVERY, TUNING = 0.95, 4, 1000  # tuning seeds begin at --seed + 1000


def main() -> None:
    chosen = options(
        __doc__,
        "with_and_without",
        seeds=8,
        extend=lambda parser: parser.add_argument("--steps", type=at_least(12), default=400, help="steps, at most"),
    )
    steps = 80 if chosen.quick else chosen.steps
    rates = np.logspace(-1.5, -0.5, 3) if chosen.quick else np.logspace(-2, 0.5, 8)
    widths = (100,) if chosen.quick else (100, 500)
    cases = [(network, norm) for network in list(NETWORKS)[: 1 if chosen.quick else 2] for norm in NORMS]
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    seeds += range(chosen.seed + TUNING, chosen.seed + TUNING + (1 if chosen.quick else 12))
    with recording("with_and_without", chosen, len(cases) * (steps // EVERY + len(widths))) as record:
        for case in cases:
            train(record, *case, steps, [(seed, float(rate)) for seed in seeds for rate in rates])
        for width in widths:
            for network, norm in cases:
                seconds = trainer(network, norm, [(chosen.seed, 0.01)], 5, width).step_seconds(20_000 // width)
                record.add(network=network, norm=norm, width=width, seconds=seconds)
                record.advance("time")
        report(record, Findings(record, [float(rate) for rate in rates], chosen.seed + TUNING), cases[::2], widths)


def trainer(network, norm, runs, steps, width=100) -> Trainer:
    activation, gain = NETWORKS[network]
    seeds = [seed for seed, _ in runs]
    return Trainer(
        perceptron(norm, (64, width, width, width, 10), activation, gain=gain),
        digits(seeds),
        {"rate": jnp.array([rate for _, rate in runs], jnp.float32)},
        seeds=seeds,
        batch_size=60,
        steps=steps,
    )


def train(record, network, norm, steps, runs) -> None:
    """Adds a row for every run: its test accuracy every few steps, and the steps to the goal, if it got there."""
    side_by_side, curves = trainer(network, norm, runs, EVERY), []
    try:
        for _ in range(steps // EVERY):
            side_by_side.epoch()
            curves.append(side_by_side.evaluate(train=False)["accuracy"])
            record.advance(f"{network}, {norm}")
    finally:  # after Ctrl-C the curves so far are kept
        for i, (seed, rate) in enumerate(runs if curves else ()):
            curve = np.array([look[i] for look in curves])
            taken = steps_to(GOOD, curve, EVERY)
            record.add(network=network, norm=norm, seed=seed, rate=rate, steps=taken, accuracy=curve.round(4))


class Findings:
    """What the rows say; seeds from `tuning` on choose the rates, the others are reported."""

    def __init__(self, record, rates, tuning):
        self.record, self.rates, self.tuning = record, rates, tuning

    def runs(self, network, norm, rate, *, tuning: bool = False) -> list[dict]:
        rows = (
            row for row in self.record.rows if (row["network"], row["norm"], row.get("rate")) == (network, norm, rate)
        )
        return [row for row in rows if (row["seed"] >= self.tuning) == tuning]

    def steps(self, network, norm, rate, *, tuning: bool = False) -> np.ndarray:
        """To the goal, of every seed; infinity for never."""
        return np.array([row["steps"] or np.inf for row in self.runs(network, norm, rate, tuning=tuning)])

    def best(self, network, norm) -> float:
        return min(self.rates, key=lambda rate: np.median(self.steps(network, norm, rate, tuning=True)))

    def highest(self, network, norm) -> float:
        """The highest rate at which every seed gets to the goal; 0 if there is none."""
        return max((r for r in self.rates if np.isfinite(self.steps(network, norm, r)).all()), default=0.0)

    def seconds(self, network, norm, width=100) -> float:
        """Of one step."""
        return self.record.values("seconds", network=network, norm=norm, width=width)[0]


def times_fewer(without: np.ndarray, normed: np.ndarray) -> np.ndarray:
    """Steps over steps: infinity where only the norm gets there, 0 where it alone does not, NaN where neither does."""
    with np.errstate(invalid="ignore"):
        return without / normed


def word(factors: np.ndarray) -> str:
    factor = np.median(np.where(np.isnan(factors), 1, factors))
    if factor < 1.1:
        return "no"
    judged = "less" if factor < 3 else "yes" if factor <= 5 else "more"
    return judged if (factors >= 1).all() else f"{judged} (not in every seed)"


def spread(factors: np.ndarray, what: str = "") -> str:
    """Of the seeds that have a factor, and how many have none."""
    known = factors[~np.isnan(factors)]
    some = [f"{middle(known)}{what}"] if len(known) else []
    none = [f"neither gets there in {len(factors) - len(known)} of {len(factors)} seeds"]
    return ", ".join(some + (none if len(known) < len(factors) else []))


def report(record, found: Findings, cases, widths) -> None:
    rows, chosen = [], {}
    faster = {"at the same learning rate": {}, "each at its own best learning rate": {}}
    for network, _ in cases:
        own = {norm: found.best(network, norm) for norm in NORMS}
        for (how, factors), rates in zip(faster.items(), (dict.fromkeys(NORMS, own["none"]), own), strict=True):
            steps = {norm: found.steps(network, norm, rates[norm]) for norm in NORMS}
            fewer = times_fewer(steps["none"], steps["batch"])
            less = fewer * found.seconds(network, "none") / found.seconds(network, "batch")
            factors[network], chosen[how, network] = (fewer, less), [f"{rates[norm]:.2g}" for norm in NORMS]
            for norm in NORMS:
                time = 1e3 * found.seconds(network, norm) * np.median(steps[norm])
                last = (spread(fewer), spread(less)) if norm == "batch" else ("", "")
                rows.append((network, how, norm, f"{rates[norm]:.2g}", middle(steps[norm]), f"{time:.0f}", *last))
    columns = ("network", "compared", "norm", "rate", f"steps to {GOOD:.0%}", "ms", "fewer steps", "less time")
    record.table("with and without batch norm", columns, rows)
    costs = [
        (network, width, *(f"{1e6 * found.seconds(network, norm, width):.0f}" for norm in NORMS))
        for network, _ in cases
        for width in widths
    ]
    record.table("microseconds of a training step", ("network", "width", *NORMS), costs)
    for how, factors in faster.items():
        measured = (
            f"{n}, at {' and '.join(chosen[how, n])}: "
            f"{spread(fewer, ' times fewer steps')}, {spread(less, ' times less time')}"
            for n, (fewer, less) in factors.items()
        )
        record.claim(
            f"Batch norm makes training 3 to 5 times faster, {how}",
            source="lesson 2, experiment 1",
            measured="; ".join(measured),
            verdict="; ".join(f"{n}: {word(f)} in steps, {word(s)} in seconds" for n, (f, s) in factors.items()),
        )
    highest = {network: [found.highest(network, norm) for norm in ("batch", "none")] for network, _ in cases}
    record.claim(
        "Higher learning rates can be used",
        source="lesson 4, benefits",
        measured="; ".join(
            f"{n}: all seeds get there up to {a:.2g}, without the norm {b:.2g}" for n, (a, b) in highest.items()
        ),
        verdict="; ".join(f"{n}: {'yes' if a > b else 'no'}" for n, (a, b) in highest.items()),
    )
    draw(record, found, cases)


def draw(record, found: Findings, cases) -> None:
    figure, axes = plt.subplots(len(cases), 2, figsize=(10, 3.5 * len(cases)), layout="constrained", squeeze=False)
    for (network, _), (left, right) in zip(cases, axes, strict=True):
        best = {norm: found.best(network, norm) for norm in NORMS}
        for norm, color in zip(NORMS, COLORS, strict=False):
            steps = np.array([found.steps(network, norm, rate) for rate in found.rates])
            reached = np.where(np.isfinite(np.median(steps, 1)), np.median(steps, 1), np.nan)
            left.plot(found.rates, reached, "o-", color=color, label=norm)
            for rate in sorted(set(best.values())):
                curves = np.array([row["accuracy"] for row in found.runs(network, norm, rate)])
                at, own = EVERY * np.arange(1, curves.shape[1] + 1), rate == best[norm]
                label = f"{norm}, rate {rate:.2g}{' (its best)' if own else ''}"
                right.plot(at, np.median(curves, 0), color=color, linestyle="-" if own else ":", label=label)
                right.fill_between(at, curves.min(0), curves.max(0), color=color, alpha=0.15 if own else 0)
        left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=f"steps to {GOOD:.0%}")
        left.set(title=f"{network}: median where most seeds get there")
        left.set_yticks((25, 50, 100, 200, 400), (25, 50, 100, 200, 400))
        left.minorticks_off()
        right.set(
            xlabel="step", ylabel="test accuracy", ylim=(0.6, 1), title=f"{network}: median and range of the seeds"
        )
        right.axhline(GOOD, color="gray", linewidth=0.8)
        left.legend()
        right.legend(loc="lower right")
    record.picture(figure)


if __name__ == "__main__":
    main()
