"""What the flower challenge's rows say: tables, verdicts, picture.

Not a program. `helps` holds the rule by which a choice mattered.
"""

from typing import NamedTuple

import numpy as np
from experiment import COLORS
from matplotlib import pyplot as plt

NONE = "no difference"
USABLE = 0.9  # of the network's best accuracy


STRATEGY = {"part": "main", "name": "strategy"}  # the rows of its seeds
NO_NORMS = {"part": "main", "name": "no norms"}
PATIENT = {"part": "longer"}


class Change(NamedTuple):
    """What a choice of the strategy gains over its alternative, seed by seed."""

    choice: str
    instead: str
    accuracy: np.ndarray
    saved: np.ndarray | None  # steps to the target; None where training is the same


def report(record, data, names, *, target: float, longer: int, ablations, averages: tuple[str, ...]) -> None:
    """`ablations` are choices and their alternatives; `averages` are statistics to judge by, the strategy's first."""
    decades = _rates(record)
    _compare(record, target, longer, decades)
    _fold(record)
    changes = _changes(record, ablations, averages)
    _answer(record, target, _choices(record, changes))
    _picture(record, data, names, target, changes)


def _steps(record, **where) -> np.ndarray:
    """Steps to the target; infinite where it was not reached."""
    return np.array([np.inf if steps is None else steps for steps in record.values("steps_to_target", **where)], float)


def _span(values: np.ndarray, form: str = "{:.0f}", endless: str = "never") -> str:
    """Median and range, with a word for what is infinite."""
    low, mid, high = (
        form.format(v) if np.isfinite(v) else endless for v in np.quantile(values, (0, 0.5, 1), method="higher")
    )
    return mid if low == high else f"{mid} ({low} to {high})"


# -- with norms and without -------------------------------------------------------------------------------------------


def _rates(record) -> dict[str, float]:
    """Decades of usable rates, by network."""
    rows, decades = [], {}
    for name, (rates, final) in _by_name(record).items():
        good = rates[final >= USABLE * final.max()]
        decades[name] = float(np.log10(good.max() / good.min()))
        span = f"{good.min():.2g} to {good.max():.2g}"
        best = rates[final.argmax()]
        edge = {rates.min(): ", the lowest tried", rates.max(): ", the highest tried"}.get(best, "")
        rows.append((name, span, f"{decades[name]:.1f}", f"{best:.2g}{edge}", f"{final.max():.1%}"))
    columns = ("network", f"rates with {USABLE:.0%} of its best", "decades", "best rate", "accuracy there")
    record.table("tuning: one seed at every learning rate, by validation images", columns, rows)
    return decades


def _compare(record, target: float, longer: int, decades: dict[str, float]) -> None:
    groups = {"strategy": STRATEGY, "no norms": NO_NORMS, f"no norms, {longer} x the epochs": PATIENT}
    steps = {name: _steps(record, **where) for name, where in groups.items()}
    arrived = {name: f"{np.isfinite(values).sum()} of {len(values)}" for name, values in steps.items()}
    spikes = {name: _spikes(record, **where) for name, where in groups.items()}
    rows, seconds = [], {}
    for name, where in groups.items():
        seconds[name] = np.array([np.inf if v is None else v for v in record.values("seconds_to_target", **where)])
        optimizer, rate = record.values("optimizer", **where)[0], record.values("rate", **where)[0]
        final = _span(record.values("final", **where), "{:.1%}")
        how = f"{optimizer}, {rate:.2g}"
        rows.append(
            (name, how, arrived[name], _span(steps[name]), _span(seconds[name], "{:.1f}"), final, f"{spikes[name]:.1f}")
        )
    goal = f"{target:.0%}"
    columns = (
        "network",
        "optimizer",
        "converged",
        f"steps to {goal}",
        f"seconds to {goal}",
        "accuracy",
        "worst spike, nats",
    )
    record.table("each network at its best: median and range of the seeds", columns, rows)
    record.claim(
        "Batch norm gives the fastest training",
        source="lesson 1, the flower challenge",
        measured=f"steps (and seconds) to {goal}: "
        + "; ".join(f"{name}: {_span(steps[name])} ({_span(seconds[name], '{:.1f}')})" for name in groups),
        verdict=_faster(
            *([float(np.median(taken)) for taken in times.values()] for times in (steps, seconds)),
        ),
    )
    tuned = max(value for name, value in decades.items() if name != "strategy")
    better = {
        "seeds that converge in these epochs": np.isfinite(steps["strategy"]).mean()
        > np.isfinite(steps["no norms"]).mean(),
        "loss spikes": spikes["strategy"] < spikes["no norms"],
        "usable rates": decades["strategy"] > tuned,
    }
    won, lost = ([name for name, good in better.items() if bool(good) == wanted] for wanted in (True, False))
    record.claim(
        "Batch norm gives the most stable training",
        source="lesson 1, the flower challenge",
        measured=f"seeds that converge: {arrived['strategy']} with it, {arrived['no norms']} without; worst rise of a "
        f"batch's loss {spikes['strategy']:.2f} and {spikes['no norms']:.2f} nats; usable learning rates "
        f"{decades['strategy']:.1f} decades, and {tuned:.1f} for the most tolerant network without",
        verdict="yes" if not lost else f"in {', '.join(won)}; not in {', '.join(lost)}" if won else "no",
    )


def _spikes(record, **where) -> float:
    return max(np.inf if value is None else value for value in record.values("spike", **where))


def _faster(steps: list[float], seconds: list[float]) -> str:
    """Medians, the strategy's first, then those without norms at several budgets of epochs: the fastest counts."""
    if not np.isfinite(steps[0]):
        return "not reached in these epochs"
    if not np.isfinite(min(steps[1:])):
        return "yes: without norms it is not reached at all"
    ratio, time = min(steps[1:]) / steps[0], min(seconds[1:]) / seconds[0]
    fewer = f"{ratio:.1f} times fewer steps" if ratio > 1 else f"{1 / ratio:.1f} times more steps"
    less = f"{time:.1f} times less time" if time > 1 else f"{1 / time:.1f} times more time"
    return f"{'yes' if time > 1 else 'no'}, {fewer}, {less}"


# -- the strategy's choices -------------------------------------------------------------------------------------------


def _changes(record, ablations, averages) -> list[Change]:
    changes = []
    for choice, instead in ablations:
        changed = {"part": "ablation", "name": choice, "instead": instead}
        seeds = record.values("seed", **changed)
        same = [STRATEGY | {"seed": int(seed)} for seed in seeds]
        accuracy = np.concatenate([record.values("final", **where) for where in same])
        before, after = np.concatenate([_steps(record, **where) for where in same]), _steps(record, **changed)
        never = np.isinf(before) & np.isinf(after)
        saved = np.subtract(after, before, where=~never, out=np.zeros(len(seeds)))
        changes.append(Change(choice, instead, accuracy - record.values("final", **changed), saved))
    recalibrated, chosen, *others = averages
    judged = {name: np.array([row[name] for row in record.values("averages", **STRATEGY)]) for name in averages}
    changes += [Change(f"momentum {chosen}", other, judged[chosen] - judged[other], None) for other in others]
    gained = judged[recalibrated] - judged[chosen]
    return [*changes, Change("recalibration", f"the average of momentum {chosen}", gained, None)]


def helps(gain: np.ndarray | None, noise: float) -> int:
    """1 if every seed gains and the median by more than the noise, -1 if it is the other way around, else 0."""
    if gain is None:
        return 0
    return next((sign for sign in (1, -1) if np.all(sign * gain > 0) and sign * np.median(gain) > noise), 0)


def _fold(record) -> None:
    """For inference; the one that comes out has no norm."""
    found = record.values("folded", **STRATEGY)
    gap, answers, seconds = (np.array([each[key] for each in found]) for key in ("gap", "answers", "seconds"))
    low, middle, high = np.quantile(seconds, (0, 0.5, 1))
    record.claim(
        "For inference fold the norms into their convolutions",
        source="the strategy in examples/flowers.py",
        measured=f"largest difference of logits {gap.max():.1g} of the largest logit, different answers "
        f"{answers.sum()}; time of inference times {middle:.2f} ({low:.2f} to {high:.2f})",
        verdict=("the same answers" if answers.sum() == 0 else "not the same answers")
        + (", faster" if high < 1 else ", slower" if low > 1 else ", no faster here"),
    )


def _choices(record, changes: list[Change]) -> dict[str, str]:
    steps = _steps(record, **STRATEGY)
    noise = (
        float(np.std(record.values("final", **STRATEGY))),
        float(np.std(steps[np.isfinite(steps)] if np.isfinite(steps).any() else 0)),
    )
    rows, verdicts = [], {}
    for change in changes:
        accuracy, speed = helps(change.accuracy, noise[0]), helps(change.saved, noise[1])
        words = {1: ["more accurate"], -1: ["less accurate"]}.get(accuracy, [])
        words = words + {1: ["faster"], -1: ["slower"]}.get(speed, [])
        verdict = {1: "yes: ", -1: "no: ", 0: "both: "}[int(np.sign(accuracy + speed))] + " and ".join(words)
        verdict = verdict if words else NONE
        points = f"{_span(100 * change.accuracy, '{:+.1f}')}"
        saved = "the same training" if change.saved is None else _span(change.saved, "{:+.0f}", "without end")
        verdicts[f"{change.choice} (not {change.instead})"] = verdict
        rows.append((change.choice, change.instead, points, saved, verdict))
        record.claim(
            f"{change.choice[0].upper()}{change.choice[1:]}, instead of: {change.instead}",
            source="the strategy in examples/flowers.py",
            measured=f"accuracy gained {points} points; steps to the target saved: {saved}",
            verdict=verdict,
        )
    record.table(
        "the strategy's choices, each changed alone",
        ("choice", "instead", "accuracy gained, points", "steps saved", "does it matter?"),
        rows,
    )
    return verdicts


def _answer(record, target: float, verdicts: dict[str, str]) -> None:
    # An order of layers that differs at one rate and not at a lower one allows the higher rate, no more.
    tuned = {choice.split(" (not")[0] for choice, v in verdicts.items() if "at 0.3 of the rate" in choice and v == NONE}
    kept = [choice for choice, verdict in verdicts.items() if verdict.startswith(("yes", "both"))]
    kept = [
        f"{c.split(' (not')[0]}, for the higher rate it allows" if c.split(" (not")[0] in tuned else c for c in kept
    ]
    against = [choice for choice, verdict in verdicts.items() if verdict.startswith("no:")]
    steps, final = _steps(record, **STRATEGY), record.values("final", **STRATEGY)
    verdict = f"what mattered: {'; '.join(kept) or 'none of the choices'}"
    record.claim(
        "Which strategy for 10,000 flowers in batches of 64?",
        source="lesson 1, the question at its end",
        measured=f"the whole strategy: {np.isfinite(steps).sum()} of {len(steps)} seeds reach {target:.0%}, after "
        f"{_span(steps)} steps; {_span(100 * final, '{:.1f}')}% at the end",
        verdict=verdict + (f"; better without: {'; '.join(against)}" if against else ""),
    )


# -- picture ----------------------------------------------------------------------------------------------------------


def _picture(record, data, names, target: float, changes: list[Change]) -> None:
    figure = plt.figure(figsize=(12, 7.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.6, 1))
    curves, rates, choices = upper.subplots(1, 3, width_ratios=(1.2, 1, 1))
    _draw_curves(record, curves, target)
    for (name, row), marker in zip(_by_name(record).items(), "os^", strict=True):
        color = COLORS[0] if name == STRATEGY["name"] else COLORS[1]
        rates.plot(*row, color=color, marker=marker, markersize=4, label=name, linewidth=1)
    rates.set(xscale="log", xlabel="highest learning rate", ylabel="accuracy at the end", title="every learning rate")
    rates.set_ylim(0, 1.3)  # room for the legend
    rates.legend(fontsize="small", loc="upper left")
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


def _by_name(record) -> dict[str, tuple]:
    names = dict.fromkeys(row["name"] for row in record.rows if row["part"] == "sweep")
    return {name: tuple(record.values(key, part="sweep", name=name) for key in ("rate", "final")) for name in names}


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
