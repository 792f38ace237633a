"""Experiment 3: which very deep networks still train?

    python examples/very_deep.py [--epochs 8] [--seeds 3] [--seed 0] [--quick]

Fully connected networks of 10, 20, 50 and 100 hidden layers of 48 on the digits, without a norm and with batch, layer
and RMS norm, plain and residual. Layer by layer x becomes relu(norm(x)) W, or x + relu(norm(x)) W in the residual ones
(the order of ResNet v2); a norm and a ReLU come before the last layer too. Weights are He's, which is what a plain
network without norms needs; those of residual branches are smaller by the root of the depth, which is what a residual
network without norms needs. SGD with momentum 0.9, batches of 64, and for every network the best of four learning rates.
A network trains if all its seeds reach 90% on the test images at one rate.

The program also shows the gradients of the weights at initialization, layer by layer, 50 layers deep (and 10 with
`--quick`). `gradient_growth.py` has the theory.

Lesson 2, experiment 3 and benefit 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import COLORS, middle, options, recording
from matplotlib import pyplot as plt
from networks import Network, Trainer, cross_entropy, digits, init_norm, norm

NORMS = ("none", "batch", "layer", "rms")
KINDS = ("plain", "residual")
RATES = (0.001, 0.005, 0.025, 0.125)
WIDTH, GOOD = 48, 0.9


def main() -> None:
    chosen = options(
        __doc__,
        "very_deep",
        seeds=3,
        extend=lambda parser: parser.add_argument("--epochs", type=int, default=8, help="passes over the images"),
    )
    epochs = 2 if chosen.quick else chosen.epochs
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
        keys = jax.random.split(key, 3)
        hidden, stats = jax.tree.map(lambda a: jnp.broadcast_to(a, (depth, *a.shape)), init_norm(name, WIDTH))
        last, last_stats = init_norm(name, WIDTH)
        branch = jnp.where(setting["residual"] > 0, 1 / depth, 1.0)
        hidden["kernel"] = jax.random.normal(keys[1], (depth, WIDTH, WIDTH)) * jnp.sqrt(2 / WIDTH * branch)
        last["kernel"] = jax.random.normal(keys[2], (WIDTH, 10)) * jnp.sqrt(2 / WIDTH)
        first = jax.random.normal(keys[0], (64, WIDTH)) * jnp.sqrt(2 / 64)
        return {"first": first, "hidden": hidden, "last": last}, (stats, last_stats, setting["residual"])

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
    every = [(kind, seed, rate) for kind in KINDS for seed in seeds for rate in RATES]
    network = deep(name, depth)
    trainer = Trainer(
        network,
        digits([seed for _, seed, _ in every]),
        {
            "residual": jnp.array([kind == "residual" for kind, _, _ in every], jnp.float32),
            "rate": jnp.array([rate for _, _, rate in every], jnp.float32),
        },
        optimizer=lambda setting: optax.sgd(setting["rate"], momentum=0.9),
        batch_size=64,
        seed=seeds[0],
    )
    norms = np.asarray(jax.jit(jax.vmap(lambda *run: gradient_norms(network, *run)))(trainer.state, trainer.data))
    if gradients:
        for (kind, seed, rate), by_layer in zip(every, norms, strict=True):
            if rate == RATES[0]:
                record.add(part="gradients", norm=name, kind=kind, depth=depth, seed=seed, gradients=by_layer)
    for _ in range(epochs):
        trainer.epoch()
        record.advance(f"{name}, {depth} layers")
    for (kind, seed, rate), accuracy in zip(every, trainer.evaluate(train=False)["accuracy"], strict=True):
        record.add(part="training", norm=name, kind=kind, depth=depth, seed=seed, rate=rate, accuracy=accuracy)


def gradient_norms(network, state, data) -> jax.Array:
    """Of the weights of every hidden layer, for the first 256 images."""
    params, stats, _ = state
    x, y = data.x[:256], data.y[:256]
    gradients = jax.grad(lambda params: cross_entropy(network.apply(params, stats, x, True, None)[0], y))(params)
    return jnp.linalg.norm(gradients["hidden"]["kernel"], axis=(1, 2))
