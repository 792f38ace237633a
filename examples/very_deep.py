"""Experiment 3: which very deep networks still train?

    python examples/very_deep.py [--epochs 15] [--seeds 3] [--seed 0] [--quick]

Fully connected networks of 10, 20, 50 and 100 hidden layers of 48 on 897 digits, without a norm and with batch, layer
and RMS norm, plain and residual. Layer by layer x becomes relu(norm(x)) W, or x + relu(norm(x)) W in the residual ones
(the order of ResNet v2); a norm and a ReLU come before the last layer too. Weights are He's, which is what a plain
network without norms needs; those of residual branches are smaller by the root of the depth, which is what a residual
network without norms needs. Adam, which does not mind the size of a gradient, batches of 64, and for every network the
best of three learning rates, of four from 50 layers on: the one whose worst seed is best on 450 validation images. A
network trains if all its seeds reach 90% on 450 other images at that rate.

Also: the gradients of the weights at initialization, layer by layer, 50 layers deep. They explode if the first hidden
layer's norm is over 100 times the last one's, and vanish below a hundredth. `gradient_growth.py` has the theory.

Verdicts, for plain and for residual networks: that none trains without a norm, or that all do with batch norm, is "yes"
if it is so at 50 and at 100 layers, "in part" if at one of them, else "no". Gradients neither explode nor vanish if the
median of first over last is within those bounds. What was found is in examples/README.md.

Lesson 2, experiment 3 and benefit 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import COLORS, middle, options, recording
from matplotlib import pyplot as plt
from networks import TRAIN, Network, Trainer, compiled, cross_entropy, digits, init_norm, norm

NORMS = ("none", "batch", "layer", "rms")
KINDS = ("plain", "residual")
RATES = (0.00025, 0.001, 0.004, 0.016)  # the lowest from 50 layers on
WIDTH, GOOD = 48, 0.9


def main() -> None:
    chosen = options(__doc__, "very_deep", seeds=3, epochs=15)
    epochs = 1 if chosen.quick else chosen.epochs
    depths = (10,) if chosen.quick else (10, 20, 50, 100)
    norms = NORMS[:2] if chosen.quick else NORMS
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    probed = min(50, max(depths))
    with recording("very_deep", chosen, len(norms) * len(depths) * epochs) as record:
        for name in norms:
            for depth in depths:
                train(record, name, depth, seeds, epochs, gradients=depth == probed)
        report(record, norms, depths, probed)


def deep(name: str, depth: int) -> Network:
    """The hidden layers are one layer whose arrays have a leading axis of depth: compiled once, scanned.

    A setting says whether the network is residual, 1 or 0; it is part of the state, since it does not train.
    """

    def init(key, setting):
        hidden, stats = jax.tree.map(lambda a: jnp.broadcast_to(a, (depth, *a.shape)), init_norm(name, WIDTH))
        last, last_stats = init_norm(name, WIDTH)
        rows = jax.random.normal(key, (64 + depth * WIDTH + 10, WIDTH))  # one draw for all compiles fastest
        first, kernels, outputs = jnp.split(rows, [64, 64 + depth * WIDTH])
        branch = jnp.where(setting["residual"] > 0, 1 / depth, 1.0)
        hidden["kernel"] = kernels.reshape(depth, WIDTH, WIDTH) * jnp.sqrt(2 / WIDTH * branch)
        last["kernel"] = outputs.T * jnp.sqrt(2 / WIDTH)
        params = {"first": first * jnp.sqrt(2 / 64), "hidden": hidden, "last": last}
        return params, (stats, last_stats, setting["residual"])

    def layer(params, stats, x, training):
        x, stats = norm(name, params, stats, x, training)
        return jax.nn.relu(x) @ params["kernel"], stats

    def apply(params, state, x, training, key):
        stats, last_stats, residual = state

        def block(x, one):
            y, new = layer(*one, x, training)
            return residual * x + y, new

        x, stats = jax.lax.scan(block, x @ params["first"], (params["hidden"], stats))
        logits, last_stats = layer(params["last"], last_stats, x, training)
        return logits, (stats, last_stats, residual)

    return Network(init, apply)


def train(record, name, depth, seeds, epochs, *, gradients: bool) -> None:
    rates = RATES if depth >= 50 else RATES[1:]
    every = [(kind, seed, rate) for kind in KINDS for seed in seeds for rate in rates]
    network, own = deep(name, depth), [seed for _, seed, _ in every]
    trainer = Trainer(
        network,
        digits(own, train=TRAIN),
        {
            "residual": jnp.array([kind == "residual" for kind, _, _ in every], jnp.float32),
            "rate": jnp.array([rate for _, _, rate in every], jnp.float32),
        },
        seeds=own,
        optimizer=lambda setting: optax.adam(setting["rate"]),
        batch_size=64,
    )
    if gradients:
        measured = compiled(gradient_norms, network)(trainer.state, trainer.data)
        for (kind, seed, rate), by_layer in zip(every, measured, strict=True):
            if rate == rates[0]:
                record.add(part="gradients", norm=name, kind=kind, depth=depth, seed=seed, gradients=by_layer)
    for _ in range(epochs):
        trainer.epoch()
        record.advance(f"{name}, {depth} layers")
    found, losses = trainer.evaluate(train=False), trainer.losses
    for i, (kind, seed, rate) in enumerate(every):
        scores = {"accuracy": found["accuracy"][i], "valid": found["valid_accuracy"][i], "losses": losses[i]}
        record.add(part="training", norm=name, kind=kind, depth=depth, seed=seed, rate=rate, **scores)


def gradient_norms(network, state, data) -> jax.Array:
    """Of the weights of every hidden layer, for the first 256 images."""
    params, stats, _ = state
    x, y = data.x[:256], data.y[:256]
    gradients = jax.grad(lambda params: cross_entropy(network.apply(params, stats, x, True, None)[0], y))(params)
    return jnp.linalg.norm(gradients["hidden"]["kernel"], axis=(1, 2))


# -- what it says -----------------------------------------------------------------------------------------------------


def scores(record, name, kind, depth) -> np.ndarray:
    """Test accuracy of every seed at the rate whose worst seed is best on validation images, then their median."""
    of = {"part": "training", "norm": name, "kind": kind, "depth": depth}
    rate = record.best("rate", "valid", score=lambda valid: (valid.min(), np.median(valid)), **of)
    return record.values("accuracy", rate=rate, **of)


def report(record, norms, depths, probed) -> None:
    accuracy = {(n, k, d): scores(record, n, k, d) for n in norms for k in KINDS for d in depths}
    rows = [
        (name, kind, *(f"{np.median(a):.0%} ({a.min():.0%})" for a in (accuracy[name, kind, d] for d in depths)))
        for kind in KINDS
        for name in norms
    ]
    columns = ("norm", "network", *(f"{depth} layers" for depth in depths))
    record.table("test accuracy: median (worst) of the seeds at the best rate", columns, rows)
    gradients = {
        (name, kind): record.values("gradients", part="gradients", norm=name, kind=kind)
        for name in norms
        for kind in KINDS
    }
    ratios = {case: values[:, 0] / values[:, -1] for case, values in gradients.items()}
    rows = [(name, *(middle(ratios[name, kind]) for kind in KINDS)) for name in norms]
    record.table(f"gradient of the first of {probed} hidden layers over the last's", ("norm", *KINDS), rows)

    def deepest(name: str, kind: str) -> int:
        return max((depth for depth in depths if accuracy[name, kind, depth].min() >= GOOD), default=0)

    def reached(name: str, kind: str) -> str:
        median = np.median(accuracy[name, kind, probed])
        return f"{kind}: trains up to {deepest(name, kind)} of {depths[-1]} layers, {median:.0%} at {probed}"

    hard = [depth for depth in depths if depth >= 50] or depths[-1:]
    for name, claim, expected in (
        ("none", "Without batch norm, training a very deep network is nearly impossible", False),
        ("batch", "With batch norm, even 50 and more layers train", True),
    ):
        record.claim(
            claim,
            source="lesson 2, experiment 3",
            measured="; ".join(reached(name, kind) for kind in KINDS),
            verdict="; ".join(f"{k}: {agrees([deepest(name, k) >= d for d in hard], expected)}" for k in KINDS),
        )
    record.claim(
        "With batch norm gradients neither explode nor vanish",
        source="lesson 2, benefit 2",
        measured="; ".join(
            f"{k}: first over last {middle(ratios['batch', k])}, {middle(ratios['none', k])} without" for k in KINDS
        ),
        verdict="; ".join(f"{k}: {steady(ratios['batch', k])}" for k in KINDS),
    )
    draw(record, norms, depths, accuracy, gradients)


def agrees(found: list[bool], expected: bool) -> str:
    same = [f == expected for f in found]
    return "yes" if all(same) else "no" if not any(same) else "in part"


def steady(ratios: np.ndarray) -> str:
    """Of the first gradient to the last, seed by seed."""
    return "yes" if 0.01 <= np.median(ratios) <= 100 else "no"


def draw(record, norms, depths, accuracy, gradients) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharey="row")
    for kind, (above, below) in zip(KINDS, axes.T, strict=True):
        for name, color, marker in zip(norms, COLORS, "osv^", strict=False):
            values = np.array([accuracy[name, kind, depth] for depth in depths])
            above.plot(depths, np.median(values, 1), color=color, marker=marker, label=name)
            above.fill_between(depths, values.min(1), values.max(1), color=color, alpha=0.2)
            by_layer = np.median(gradients[name, kind], 0)
            below.plot(np.arange(1, len(by_layer) + 1), by_layer, color=color, label=name)
        above.axhline(GOOD, color="gray", linewidth=0.8)
        above.set(xscale="log", xticks=depths, xticklabels=depths, xlabel="hidden layers", title=f"{kind}: training")
        above.minorticks_off()
        below.set(yscale="log", xlabel="hidden layer, from the input", title=f"{kind}: at initialization")
        above.legend(loc="lower left")
        below.legend()
    axes[0, 0].set_ylabel("test accuracy: median and range")
    axes[1, 0].set_ylabel("norm of the gradient of the weights")
    record.picture(figure)


if __name__ == "__main__":
    main()
