"""What the flower challenge's rows say: tables and verdicts.

Not a program. The rules are functions of their own, and stand in words in `flowers.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from flower_picture import NO_NORMS, PATIENT, STRATEGY, picture

NONE = "no difference"
USABLE = 0.9  # of the network's best accuracy
FASTER = 1.1  # times less time


class Change(NamedTuple):
    """What a choice of the strategy gains over its alternative, seed by seed."""

    choice: str
    instead: str
    accuracy: np.ndarray
    saved: np.ndarray | None  # steps to the target; None where training is the same


def report(record, data, names, *, target: float, longer: int, ablations, averages: tuple[str, ...]) -> None:
    """`ablations` are choices and their alternatives; `averages` are statistics to judge by, the strategy's first."""
    _compare(record, target, longer, _rates(record))
    _fold(record)
    changes = _changes(record, ablations, averages)
    _answer(record, target, _choices(record, changes))
    picture(record, data, names, target, _by_name(record), changes)


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
        good = usable(rates, final)
        decades[name] = (len(good) - 1) / 2  # rates are half a decade apart
        best = rates[final.argmax()]
        ends = {rates.min(): "the lowest tried", rates.max(): "the highest tried"}
        span = " to ".join(f"{rate:.2g}" + (f" ({ends[rate]})" if rate in ends else "") for rate in (good[0], good[-1]))
        rows.append((name, len(rates), span, f"{decades[name]:.1f}", f"{best:.2g}", f"{final.max():.1%}"))
    columns = (
        "network",
        "rates tried",
        f"rates with {USABLE:.0%} of its best",
        "decades",
        "best rate",
        "accuracy there",
    )
    record.table("tuning, by validation images: one seed at every learning rate", columns, rows)
    return decades


def _compare(record, target: float, longer: int, decades: dict[str, float]) -> None:
    groups = {"strategy": STRATEGY, "no norms": NO_NORMS, f"no norms, {longer} x the epochs": PATIENT}
    steps = {name: _steps(record, **where) for name, where in groups.items()}
    arrived = {name: f"{np.isfinite(values).sum()} of {len(values)}" for name, values in steps.items()}
    spikes = {name: _spikes(record, **where) for name, where in groups.items()}
    seeds = {name: len(values) for name, values in steps.items()}
    rows, seconds = [], {}
    for name, where in groups.items():
        seconds[name] = np.array([np.inf if v is None else v for v in record.values("seconds_to_target", **where)])
        optimizer, rate = record.values("optimizer", **where)[0], record.values("rate", **where)[0]
        final = _span(record.values("final", **where), "{:.1%}")
        how = f"{optimizer}, {rate:.2g}"
        rows.append(
            (
                name,
                how,
                arrived[name],
                _span(steps[name]),
                _span(seconds[name], "{:.1f}"),
                final,
                f"{spikes[name].max():.2f}",
            )
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
    counts = f"{seeds['strategy']} seeds, with more epochs {min(seeds.values())}"
    record.table(f"each network at its best: median and range of {counts}", columns, rows)
    record.claim(
        "Batch norm gives the fastest training",
        source="lesson 1, the flower challenge",
        measured=f"steps (and seconds) to {goal}: "
        + "; ".join(f"{name}: {_span(steps[name])} ({_span(seconds[name], '{:.1f}')})" for name in groups),
        verdict=_faster(*(list(taken.values()) for taken in (steps, seconds))),
    )
    tuned = max(value for name, value in decades.items() if name != "strategy")
    better = {
        "seeds that converge in these epochs": more_converge(steps["strategy"], steps["no norms"]),
        "loss spikes": calmer(spikes["strategy"], spikes["no norms"]),
        "usable rates": decades["strategy"] > tuned,
    }
    lower = np.sum(spikes["strategy"] < spikes["no norms"])
    record.claim(
        "Batch norm gives the most stable training",
        source="lesson 1, the flower challenge",
        measured=f"seeds that converge: {arrived['strategy']} with it, {arrived['no norms']} without; worst rise of a "
        f"batch's loss {spikes['strategy'].max():.2f} and {spikes['no norms'].max():.2f} nats, lower with it in "
        f"{lower} seeds; usable rates {decades['strategy']:.1f} decades, and {tuned:.1f} for the most tolerant network "
        "without",
        verdict=stable(better),
    )


def _by_name(record) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rates in increasing order and the accuracies there, by network."""
    found = {}
    for name in dict.fromkeys(row["name"] for row in record.rows if row["part"] == "sweep"):
        rates, final = (record.values(key, part="sweep", name=name) for key in ("rate", "final"))
        found[name] = (np.sort(rates), final[np.argsort(rates)])
    return found


def _spikes(record, **where) -> np.ndarray:
    return np.array([np.inf if value is None else value for value in record.values("spike", **where)])


def usable(rates: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Of increasing rates those around the best that are good enough, as far as there is no hole."""
    bad, best = np.flatnonzero(final < USABLE * final.max()), final.argmax()
    first, last = max(bad[bad < best], default=-1) + 1, min(bad[bad > best], default=len(rates))
    return rates[first:last]


def more_converge(steps: np.ndarray, others: np.ndarray) -> bool:
    """A quarter of the seeds more."""
    return bool(np.isfinite(steps).mean() - np.isfinite(others).mean() >= 0.25)


def calmer(spikes: np.ndarray, others: np.ndarray) -> bool:
    """In three of four seeds."""
    return bool(np.mean(spikes < others) >= 0.75)


def stable(better: dict[str, bool]) -> str:
    won, lost = ([name for name, good in better.items() if good == wanted] for wanted in (True, False))
    return "yes" if not lost else f"in {', '.join(won)}; not in {', '.join(lost)}" if won else "no"


def _faster(steps: Sequence, seconds: Sequence) -> str:
    """By seed: the strategy's, then those without norms at several budgets of epochs, of the first so many seeds."""
    if not np.isfinite(np.median(steps[0])):
        return "not reached in these epochs"
    if not any(np.isfinite(other).any() for other in steps[1:]):
        return "yes: without norms it is not reached at all"
    ratio, time = (min(_times(taken[0], other) for other in taken[1:]) for taken in (steps, seconds))
    if time in (0, np.inf):
        return f"{'yes: without norms' if time else 'no: with them'} most of the seeds compared do not reach it"
    answer = "yes, " if time >= FASTER else "no, " if time * FASTER <= 1 else "no difference: "
    fewer = f"{max(ratio, 1 / ratio):.1f} times {'fewer' if ratio >= 1 else 'more'} steps"
    return f"{answer}{fewer}, {max(time, 1 / time):.1f} times {'less' if time >= 1 else 'more'} time"


def _times(taken, other) -> float:
    """How many times longer the other takes: the median over the seeds that both have; a tie where neither arrives."""
    other = np.atleast_1d(np.asarray(other, float))
    taken = np.atleast_1d(np.asarray(taken, float))[: len(other)]
    neither = np.isinf(taken) & np.isinf(other)
    return float(np.median(np.divide(other, taken, where=~neither, out=np.ones(len(other)))))


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


def matters(accuracy: int, speed: int) -> str:
    """Signs, as `helps` gives them."""
    words = {1: ["more accurate"], -1: ["less accurate"]}.get(accuracy, [])
    words = words + {1: ["faster"], -1: ["slower"]}.get(speed, [])
    answer = {1: "yes: ", -1: "no: ", 0: "both: "}[int(np.sign(accuracy + speed))]
    return answer + " and ".join(words) if words else NONE


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
        verdict=same(answers.sum(), low, high),
    )


def same(answers: int, low: float, high: float) -> str:
    """How many answers differ, and the range of the times that inference takes."""
    faster = "faster" if high < 1 else "slower" if low > 1 else "no faster here"
    return f"{'the same answers' if answers == 0 else 'not the same answers'}, {faster}"


def _choices(record, changes: list[Change]) -> dict[str, str]:
    steps = _steps(record, **STRATEGY)
    noise = (
        float(np.std(record.values("final", **STRATEGY))),
        float(np.std(steps[np.isfinite(steps)] if np.isfinite(steps).any() else 0)),
    )
    rows, verdicts = [], {}
    for change in changes:
        verdict = matters(helps(change.accuracy, noise[0]), helps(change.saved, noise[1]))
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
    count = min(len(change.accuracy) for change in changes)
    record.table(
        f"the strategy's choices, each changed alone (the order also at another rate): median and range of {count} "
        "seeds; of momentum and recalibration, which change no training, of all seeds",
        ("choice", "instead", "accuracy gained, points", "steps saved", "does it matter?"),
        rows,
    )
    return verdicts


def _answer(record, target: float, verdicts: dict[str, str]) -> None:
    steps, final = _steps(record, **STRATEGY), record.values("final", **STRATEGY)
    record.claim(
        "Which strategy for 10,000 flowers in batches of 64?",
        source="lesson 1, the question at its end",
        measured=f"the whole strategy: {np.isfinite(steps).sum()} of {len(steps)} seeds reach {target:.0%}, after "
        f"{_span(steps)} steps; {_span(100 * final, '{:.1f}')}% at the end",
        verdict=what_mattered(verdicts),
    )


def what_mattered(verdicts: dict[str, str]) -> str:
    """By choice and its alternative."""
    # An order of layers that differs at one rate and not at a lower one allows the higher rate, no more.
    tuned = {choice.split(" (not")[0] for choice, v in verdicts.items() if "at 0.3 of the rate" in choice and v == NONE}
    kept = [choice for choice, verdict in verdicts.items() if verdict.startswith(("yes", "both"))]
    kept = [
        f"{c.split(' (not')[0]}, for the higher rate it allows" if c.split(" (not")[0] in tuned else c for c in kept
    ]
    against = [choice for choice, verdict in verdicts.items() if verdict.startswith("no:")]
    better = f"; better without: {'; '.join(against)}" if against else ""
    return f"what mattered: {'; '.join(kept) or 'none of the choices'}{better}"
