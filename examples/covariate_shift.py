"""Internal covariate shift: does batch norm reduce it, and is that why it helps?

    python examples/covariate_shift.py [--steps 240] [--seeds 5] [--seed 0] [--quick]

Perceptrons on the digits (three hidden layers of 100, batches of 60, SGD with momentum 0.9): sigmoids, as in the
batch-norm paper's first figure, but with four times Glorot's initialization, and ReLUs with He's. Without a norm, with
batch norm, and with batch norm whose output is disturbed on purpose, anew in every step ("noisy"; Santurkar et al.
2018, arXiv:1805.11604, section 2.2 and appendix). The noise on what batch norm puts out (y, of sample i and unit j):

    y_ij <- s_ij y_ij + m_ij    m_ij uniform within 0.1 of mu_j, s_ij normal around sigma_j with standard deviation 0.1
                                mu_j uniform from -0.5 to 0.5, sigma_j uniform from 1 to 1.25, drawn for every step

In inference mode the noise has its expectation: s = 1.125, m = 0. Every 20 steps two things are measured, without
influence on training, over one more step:

  - inputs: how far the distribution of what enters each activation moves, for 256 fixed images, in training mode. Per
    unit sqrt(change of mean^2 + change of deviation^2) / deviation, the distance of two normal distributions
    (Wasserstein's, 2); averaged over units and layers. Behind batch norm these two are its bias and scale, so that
    it moves little is so by construction; what can be asked is whether it matters.
  - gradients: how much the gradient of a layer's weights changes when only the layers before it take the step, |G' - G|
    / |G| on the step's own batch and with its noise, averaged over layers (Santurkar et al., definition 2.1, there
    without the division).

Speed is the number of steps to 95% on the test images, at three looks in a row, one every four steps. All train at six
learning rates; best is the one with the fewest steps (the median) on three seeds that are used for nothing else. Shift
is compared at the same rate, the best without a norm; speed with each at its own best. One thing is less than another
if it is in at least three quarters of the seeds.

That inputs hold still is not why batch norm helps ("no") if batch norm is faster than no norm, its noisy kind is too,
and the noise moves inputs further than no norm does. What was found is in examples/README.md.

Lesson 2, the problem; lesson 4, the problem.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import COLORS, at_least, middle, options, recording
from matplotlib import pyplot as plt
from networks import Network, Trainer, compiled, cross_entropy, digits, perceptron, sgd, steps_to

NETWORKS = {"sigmoid": (jax.nn.sigmoid, 16.0), "relu": (jax.nn.relu, 2.0)}
NORMS = ("none", "batch", "noisy")
GOOD, EVERY, TUNING = 0.95, 4, 1000  # tuning seeds begin at --seed + 1000
HIDDEN, UNITS, BATCH, PROBES = 3, 100, 60, 256


def main() -> None:
    chosen = options(
        __doc__,
        "covariate_shift",
        extend=lambda parser: parser.add_argument("--steps", type=at_least(12), default=240, help="training steps"),
    )
    steps = 40 if chosen.quick else chosen.steps
    rates = [0.1] if chosen.quick else [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    networks = ["relu"] if chosen.quick else list(NETWORKS)
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    seeds += range(chosen.seed + TUNING, chosen.seed + TUNING + (1 if chosen.quick else 3))
    with recording("covariate_shift", chosen, len(networks) * len(NORMS) * (steps // EVERY)) as record:
        for network in networks:
            for norm in NORMS:
                train(record, network, norm, steps, [(seed, rate) for seed in seeds for rate in rates])
        report(record, networks, rates, chosen.seed + TUNING)


# -- networks ---------------------------------------------------------------------------------------------------------


def shifting(network: str, norm: str, seen: list | None = None) -> Network:
    """The perceptron, with noise if it is the noisy one; what enters its activations is appended to `seen`."""
    activation, gain = NETWORKS[network]
    name = "batch" if norm == "noisy" else norm
    widths = (64, *[UNITS] * HIDDEN, 10)

    def apply(params, stats, x, training, key):
        noise = iter(draw_noise(key, len(x))) if norm == "noisy" and training else None

        def enter(x):
            if noise is not None:
                scale, shift = next(noise)
                x = scale * x + shift
            elif norm == "noisy":
                x = 1.125 * x
            if seen is not None:
                seen.append(x)
            return activation(x)

        return perceptron(name, widths, enter).apply(params, stats, x, training, key)

    return Network(perceptron(name, widths, gain=gain).init, apply)


def draw_noise(key, samples: int) -> list[tuple[jax.Array, jax.Array]]:
    """Scales and shifts of every layer, [samples, units]."""
    one, other = jax.random.split(key)
    uniform = jax.random.uniform(one, (HIDDEN, 2 + samples, UNITS))
    mu, sigma = uniform[:, :1] - 0.5, 1 + 0.25 * uniform[:, 1:2]
    scales = sigma + 0.1 * jax.random.normal(other, (HIDDEN, samples, UNITS))
    shifts = mu + 0.2 * (uniform[:, 2:] - 0.5)
    return list(zip(scales, shifts, strict=True))


# -- what one more step would move ------------------------------------------------------------------------------------


def movement(network: str, norm: str, optimizer, offset, state, data, setting, key):
    """Of inputs and of gradients, averaged over layers; `offset` is where in the training images the batch begins."""
    params, stats, opt_state = state
    now, then = jax.random.split(key)
    x, y = (jax.lax.dynamic_slice_in_dim(part, offset, BATCH) for part in (data.x, data.y))

    def gradient(params):
        def loss(params):
            return cross_entropy(shifting(network, norm).apply(params, stats, x, True, now)[0], y)

        return jax.grad(loss)(params)

    def inputs(params, key):
        seen = []
        shifting(network, norm, seen).apply(params, stats, data.x[:PROBES], True, key)
        values = jnp.stack(seen)
        return values.mean(1), values.std(1) + 1e-6

    before = gradient(params)
    updates, _ = optimizer(setting).update(before, opt_state, params)
    moved = optax.apply_updates(params, updates)
    (mean, deviation), (new_mean, new_deviation) = inputs(params, now), inputs(moved, then)
    distance = jnp.sqrt((new_mean - mean) ** 2 + (new_deviation - deviation) ** 2) / deviation
    changes = []
    for i in range(1, HIDDEN + 1):
        old, new = (grads[i]["kernel"] for grads in (before, gradient([*moved[:i], *params[i:]])))
        changes.append(jnp.linalg.norm(new - old) / (jnp.linalg.norm(old) + 1e-12))
    return distance.mean(), jnp.mean(jnp.stack(changes))


def train(record, network, norm, steps, runs) -> None:
    seeds = [seed for seed, _ in runs]
    trainer = Trainer(
        shifting(network, norm),
        digits(seeds),
        {"rate": jnp.array([rate for _, rate in runs], jnp.float32)},
        seeds=seeds,
        batch_size=BATCH,
        steps=EVERY,
    )
    measure = compiled(movement, network, norm, sgd)
    curves, moved = [], []
    try:
        for look in range(steps // EVERY):
            if look % 5 == 0:
                offset = np.full(len(runs), (look * BATCH) % (trainer.data.x.shape[1] - BATCH))
                keys = jax.vmap(lambda key, look=look: jax.random.fold_in(key, look))(trainer.keys)
                moved.append(np.stack(measure(offset, trainer.state, trainer.data, trainer.settings, keys)))
            trainer.epoch()
            curves.append(trainer.evaluate(train=False)["accuracy"])
            record.advance(f"{network}, {norm}")
    finally:  # after Ctrl-C the looks so far are kept
        if curves:
            keep(record, {"network": network, "norm": norm}, runs, np.stack(curves, 1), np.stack(moved, 2))


def keep(record, about: dict, runs, curves: np.ndarray, moved: np.ndarray) -> None:
    """A row for every run: accuracies [runs, looks], movements [inputs and gradients, runs, measurements]."""
    for (seed, rate), curve, inputs, gradients in zip(runs, curves, *moved, strict=True):
        taken = steps_to(GOOD, curve, EVERY)
        scores = {"steps": taken, "accuracy": curve.round(4), "inputs": inputs, "gradients": gradients}
        record.add(**about, seed=seed, rate=rate, **scores)


# -- what it says -----------------------------------------------------------------------------------------------------


class Findings:
    """One network's rows; seeds from `tuning` on choose the rates, the others are reported."""

    def __init__(self, record, network, rates, tuning):
        self.rows, self.tuning = [row for row in record.rows if row["network"] == network], tuning
        self.best = {
            norm: min(rates, key=lambda rate, norm=norm: np.median(self.steps(norm, rate, tuning=True)))
            for norm in NORMS
        }

    def column(self, key, norm, rate, *, tuning: bool = False) -> list:
        rows = (row for row in self.rows if row["norm"] == norm and row["rate"] == rate)
        return [row[key] for row in rows if (row["seed"] >= self.tuning) == tuning]

    def steps(self, norm, rate=None, *, tuning: bool = False) -> np.ndarray:
        """To the goal, of every seed, at the best rate if none is given; infinity for never."""
        rate = self.best[norm] if rate is None else rate
        return np.array([steps or np.inf for steps in self.column("steps", norm, rate, tuning=tuning)])

    def shift(self, what, norm) -> np.ndarray:
        """The median over training, of every seed, at the rate that is best without a norm."""
        return np.median(self.column(what, norm, self.best["none"]), 1)


def less(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.mean(a < b) >= 0.75)


def report(record, networks, rates, tuning) -> None:
    found = {network: Findings(record, network, rates, tuning) for network in networks}
    rows = [
        (
            network,
            norm,
            *(middle(f.shift(what, norm)) for what in ("inputs", "gradients")),
            f"{f.best[norm]:.2g}",
            middle(f.steps(norm)),
        )
        for network, f in found.items()
        for norm in NORMS
    ]
    columns = (
        "network",
        "norm",
        "inputs move by, per step",
        "gradients change by",
        "best rate",
        f"steps to {GOOD:.0%}",
    )
    record.table("internal covariate shift and speed", columns, rows)
    for what, claim in (
        ("inputs", "With batch norm the distribution of a layer's inputs moves less"),
        ("gradients", "With batch norm a layer's gradient changes less when the layers before it are updated"),
    ):
        shifts = {network: [f.shift(what, norm) for norm in ("batch", "none")] for network, f in found.items()}
        record.claim(
            claim,
            source="lesson 2, the problem; lesson 4, the problem",
            measured="; ".join(f"{n}: {middle(a)} with it, {middle(b)} without" for n, (a, b) in shifts.items()),
            verdict="; ".join(f"{n}: {'yes' if less(a, b) else 'no'}" for n, (a, b) in shifts.items()),
        )
    record.claim(
        "That is why batch norm trains faster",
        source="lesson 2, the problem; lesson 4, the problem",
        measured="; ".join(f"{network}: {speeds(f)}" for network, f in found.items()),
        verdict="; ".join(f"{network}: {explains(f)}" for network, f in found.items()),
    )
    draw(record, found)


def speeds(found: Findings) -> str:
    times = np.median(found.shift("inputs", "noisy")) / np.median(found.shift("inputs", "none"))
    steps = ", ".join(f"{np.median(found.steps(norm)):.0f} {norm}" for norm in NORMS)
    return f"noise makes inputs move {times:.3g} times as far as without a norm; steps to {GOOD:.0%}: {steps}"


def explains(found: Findings) -> str:
    """Refuted where noise moves the inputs further than no norm does, and training is faster all the same."""
    if not less(found.steps("batch"), found.steps("none")):
        return "batch norm is not faster here"
    if not less(found.shift("inputs", "none"), found.shift("inputs", "noisy")):
        return "the noise is too weak to tell"
    return "no" if less(found.steps("noisy"), found.steps("none")) else "not refuted"


def draw(record, found) -> None:
    figure, axes = plt.subplots(2, len(found), figsize=(5 * len(found) + 1, 7), layout="constrained", squeeze=False)
    for (network, f), (above, below) in zip(found.items(), axes.T, strict=True):
        for norm, color in zip(NORMS, COLORS, strict=False):
            for ax, what, rate, every in (
                (above, "inputs", f.best["none"], 5 * EVERY),
                (below, "accuracy", f.best[norm], EVERY),
            ):
                values = np.array(f.column(what, norm, rate))
                at = every * np.arange(values.shape[1]) + (EVERY if ax is below else 0)
                ax.plot(at, np.median(values, 0), color=color, label=norm)
                ax.fill_between(at, values.min(0), values.max(0), color=color, alpha=0.2)
        above.set(yscale="log", title=f"{network}: at the best rate without a norm, {f.best['none']:.2g}")
        above.set(xlabel="step", ylabel="inputs move by, per step (deviations)")
        own = ", ".join(f"{f.best[norm]:.2g}" for norm in NORMS)
        below.set(ylim=(0.6, 1), title=f"{network}: each at its own best rate, {own}")
        below.set(xlabel="step", ylabel="test accuracy")
        below.axhline(GOOD, color="gray", linewidth=0.8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title="norm", loc="outside right center")
    record.picture(figure)


if __name__ == "__main__":
    main()
