"""Averaged weights have statistics that no batch ever had: what does that cost, and does recalibration give it back?

    python examples/recalibrate.py [--epochs 16] [--average 8] [--seeds 8] [--seed 0] [--quick]

A Flax Linen network (six hidden layers of 100, batch norm, ReLU) on the digits, batches of 60, SGD with momentum 0.9 at
three constant rates. The weights at the end of the last epochs are averaged (stochastic weight averaging,
arXiv:1803.05407). The average is another network: what enters its norms has another mean and a smaller variance than
what entered those of any network it was made from, and the more so, the farther the weights travel in an epoch. Four
networks are tested at each rate:

    last           the last weights, with their running averages
    not measured   averaged weights, the last running averages
    averaged too   averaged weights, and averages of the running averages beside them
    recalibrated   averaged weights; `jaxnorm.linen.recalibrate` measures every norm again, exactly pooled over one pass

Verdicts, at each rate, by the median over seeds of a difference in test accuracy, which counts above a point: averaging
without measuring loses accuracy if it is behind the same weights with other statistics, or behind the last weights.
Recalibration gives it back if, wherever it was lost, the same weights are better recalibrated than not measured, and
not behind the last ones; a part if they still are. Each row has the mean training loss of every epoch.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import CONSOLE, at_least, middle, options, recording
from matplotlib import pyplot as plt
from networks import digits
from rich.progress import track

import jaxnorm.linen as jnl

BATCH_SIZE = 60
RATES = (0.1, 0.3, 1.0)
WAYS = ("last", "not measured", "averaged too", "recalibrated")
POINT = 1.0  # of percent


class Digits(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool):
        for _ in range(6):
            x = nn.Dense(100, use_bias=False)(x)
            x = nn.relu(jnl.BatchNorm(use_running_average=not training, momentum=0.9)(x))
        return nn.Dense(10)(x)


@jax.jit
def epoch(variables, opt_state, x, y, rate):
    """One pass over batches [steps, batch, ...], and its mean loss."""
    optimizer = optax.sgd(rate, momentum=0.9)

    def step(carry, batch):
        variables, opt_state = carry
        images, labels = batch

        def loss(params):
            every = {**variables, "params": params}
            logits, new = Digits().apply(every, images, training=True, mutable="batch_stats")
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(gradients, opt_state)
        return ({"params": optax.apply_updates(variables["params"], updates), **new}, opt_state), value

    (variables, opt_state), losses = jax.lax.scan(step, (variables, opt_state), (x, y))
    return variables, opt_state, losses.mean()


@jax.jit
def accuracy(variables, x, y):
    return jnp.mean(Digits().apply(variables, x, training=False).argmax(-1) == y)


def average(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def run(seed: int, rate: float, epochs: int, averaged: int, advance) -> tuple[dict[str, float], list[float]]:
    """Test accuracy of the four networks; the training loss of every epoch."""
    x, y, x_test, y_test = (part[0] for part in digits([seed])[:4])
    rng, steps = np.random.default_rng(seed), len(x) // BATCH_SIZE
    variables = Digits().init(jax.random.key(seed), x[:1], training=False)
    opt_state, ends = optax.sgd(rate, momentum=0.9).init(variables["params"]), []
    losses = []
    for _ in range(epochs):
        order = rng.permutation(len(x))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        variables, opt_state, loss = epoch(variables, opt_state, x[order], y[order], rate)
        losses.append(round(float(loss), 5))
        ends = [*ends, variables][-averaged:]
        advance(f"rate {rate}, seed {seed}")
    params, stats = (average([end[part] for end in ends]) for part in ("params", "batch_stats"))
    mixed = {"params": params, "batch_stats": variables["batch_stats"]}
    batches = track(np.array_split(np.asarray(x), steps), "recalibrating", console=CONSOLE, transient=True)
    candidates = (
        variables,
        mixed,
        {"params": params, "batch_stats": stats},
        jnl.recalibrate(Digits(), mixed, batches, training=True),
    )
    return {way: float(accuracy(v, x_test, y_test)) for way, v in zip(WAYS, candidates, strict=True)}, losses


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=at_least(1), default=16, help="passes over the images")
    parser.add_argument("--average", type=at_least(1), default=8, help="ends of epochs that are averaged")


def main() -> None:
    chosen = options(__doc__, "recalibrate", seeds=8, extend=extend)
    epochs, rates = (3, RATES[-1:]) if chosen.quick else (chosen.epochs, RATES)
    with recording("recalibrate", chosen, len(rates) * chosen.seeds * epochs) as record:
        for rate in rates:
            for seed in range(chosen.seed, chosen.seed + chosen.seeds):
                found, losses = run(seed, rate, epochs, chosen.average, record.advance)
                for way, value in found.items():
                    record.add(rate=rate, seed=seed, way=way, accuracy=value, losses=losses)
        report(record, rates)


def report(record, rates) -> None:
    percent = {(way, rate): 100 * record.values("accuracy", way=way, rate=rate) for way in WAYS for rate in rates}
    rows = [(way, *(middle(percent[way, rate]) for rate in rates)) for way in WAYS]
    columns = ("weights and statistics", *(f"rate {rate}" for rate in rates))
    record.table("test accuracy in percent: median (range)", columns, rows)
    beside = {
        f"{way} beside {other}": [ahead(percent, way, other, rate) for rate in rates]
        for way, other in (("not measured", "last"), ("recalibrated", "not measured"), ("recalibrated", "last"))
    }
    at = "points of test accuracy at rate " + ", ".join(map(str, rates))
    measured = f"{at}: " + "; ".join(f"{what} {', '.join(f'{d:+.1f}' for d in ds)}" for what, ds in beside.items())
    record.claim(
        "Averaged weights lose accuracy with the running averages of the last ones",
        source="stochastic weight averaging, arXiv:1803.05407, section 3.2",
        measured=measured,
        verdict=loses(percent, rates),
    )
    record.claim(
        "Recalibration gives it back",
        source="precise batch norm, arXiv:2105.07576, section 3",
        measured=measured,
        verdict=gives_back(percent, rates),
    )
    draw(record, percent, rates)


def ahead(percent: dict[tuple[str, float], np.ndarray], way: str, other: str, rate: float) -> float:
    """By so many points, seed by seed."""
    return float(np.median(percent[way, rate] - percent[other, rate]))


def lost(percent, rates) -> list[float]:
    others = [way for way in WAYS if way != "not measured"]
    return [rate for rate in rates if any(ahead(percent, way, "not measured", rate) > POINT for way in others)]


def loses(percent, rates) -> str:
    where = lost(percent, rates)
    return "yes" if len(where) == len(rates) else f"at rate {', '.join(map(str, where))}" if where else "no"


def gives_back(percent, rates) -> str:
    where = lost(percent, rates)
    if not where:
        return "nothing was lost"
    better = lambda way: [rate for rate in where if ahead(percent, way, "not measured", rate) > POINT]
    whole = lambda way: [rate for rate in better(way) if ahead(percent, "last", way, rate) <= POINT]
    back = whole("recalibrated")
    listed = lambda rates: f"at rate {', '.join(map(str, rates))}"
    parts = [f"{'yes,' if back == where else 'only'} {listed(back)}"] if back else []
    partly = [rate for rate in better("recalibrated") if rate not in back]
    parts += [f"a part of it {listed(partly)}"] if partly else []
    verdict = "; ".join(parts) or "no"
    return f"{verdict}; averaging the statistics too does" if whole("averaged too") == where else verdict


def draw(record, percent, rates) -> None:
    figure, axes = plt.subplots(1, len(rates), figsize=(4 * len(rates) + 1, 4), layout="constrained", squeeze=False)
    for rate, ax in zip(rates, axes[0], strict=True):
        seeds = ax.plot(WAYS, [percent[way, rate] for way in WAYS], "o-", color="gray", alpha=0.5, markersize=4)
        seeds[0].set_label("a seed")
        ax.plot(
            WAYS, [np.median(percent[way, rate]) for way in WAYS], "o-", color="#d55e00", linewidth=2, label="median"
        )
        ax.set_title(f"rate {rate}")
        ax.tick_params(axis="x", rotation=20)
    axes[0, 0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    record.picture(figure)


if __name__ == "__main__":
    main()
