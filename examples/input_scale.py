"""Inputs that are huge, tiny, or each of another size: does a norm in the network help, and does feature scaling?

    python examples/input_scale.py [--epochs 15] [--seeds 3] [--seed 0] [--quick]

The perceptron of `networks.py` (three hidden layers of 100 ReLUs) on 897 digits, batches of 60, SGD with momentum 0.9,
each case at the best of eight learning rates over seven decades: the one whose worst seed is best on 450 validation
images. Inputs are spoiled in two ways: all pixels multiplied by one number, from a thousandth to a thousand; or each
pixel by its own, drawn evenly in the logarithm over 0, 2, 4 and 6 decades around 1. Five networks: without a norm;
without one, but on inputs standardized by the training images (feature scaling: every pixel to mean 0 and variance 1,
constant ones to 0); with batch norm behind every product; with batch norm on the inputs too; with layer norm behind
every product. A case trains if at that rate accuracy on 450 other images reaches 90% in every seed.

Verdicts: "yes" if more cases train with batch norm than without and as many as with feature scaling, "a little" if more
than without only, else "no"; and the same for batch norm on the inputs too.

Lesson 2, the problem; lesson 3, why it is a problem; lesson 2, question 4.
"""

import jax.numpy as jnp
import numpy as np
from experiment import COLORS, options, recording
from matplotlib import pyplot as plt
from networks import TRAIN, Data, Network, Trainer, digits, perceptron

import jaxnorm as jn

NETWORKS = {
    "none": "none",
    "none, scaled inputs": "none",
    "batch": "batch",
    "batch, inputs too": "batch",
    "layer": "layer",
}
GOOD = 0.9
DECADES = (0, 2, 4, 6)


def main() -> None:
    chosen = options(__doc__, "input_scale", seeds=3, epochs=15)
    epochs = 3 if chosen.quick else chosen.epochs
    scales = np.logspace(-3, 3, 3 if chosen.quick else 7)
    rates = np.logspace(-2, -1, 2) if chosen.quick else np.logspace(-6, 1, 8)
    networks = dict(list(NETWORKS.items())[: 4 if chosen.quick else 5])
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    spoiled = [("all alike", float(s)) for s in scales] + [("apart", float(d)) for d in DECADES[1:]]
    every = [(seed, how, size, float(rate)) for seed in seeds for how, size in spoiled for rate in rates]
    with recording("input_scale", chosen, len(networks) * epochs) as record:
        for name, norm in networks.items():
            data = inputs(every, standardized="scaled" in name)
            settings = {"rate": jnp.array([rate for *_, rate in every], jnp.float32)}
            trainer = Trainer(
                perceptron(norm) if name != "batch, inputs too" else normalized_inputs(),
                data,
                settings,
                seeds=[seed for seed, *_ in every],
                batch_size=60,
            )
            for _ in range(epochs):
                trainer.epoch()
                record.advance(name)
            found, losses = trainer.evaluate(train=False), trainer.losses
            for i, (seed, how, size, rate) in enumerate(every):
                scores = {"accuracy": found["accuracy"][i], "valid": found["valid_accuracy"][i], "losses": losses[i]}
                record.add(network=name, seed=seed, how=how, size=size, rate=rate, **scores)
        report(record, list(networks), scales)


def normalized_inputs() -> Network:
    """Batch norm, without parameters, in front of the first product as well."""
    inner = perceptron("batch")

    def init(key, setting):
        params, stats = inner.init(key, setting)
        return params, [jn.RunningStats.init(64), *stats]

    def apply(params, stats, x, training, key):
        x, first = jn.batch_norm(x, stats[0], training=training)
        logits, rest = inner.apply(params, stats[1:], x, training, key)
        return logits, [first, *rest]

    return Network(init, apply)


def inputs(every, *, standardized: bool) -> Data:
    """The digits of every run, spoiled, and perhaps repaired by the statistics of the training images."""
    data = digits([seed for seed, *_ in every], train=TRAIN)
    factors = np.stack([factor(seed, how, size) for seed, how, size, _ in every])[:, None]
    images = {part: np.asarray(getattr(data, part)) * factors for part in ("x", "x_test", "x_valid")}
    if standardized:
        mean, std = images["x"].mean(1, keepdims=True), images["x"].std(1, keepdims=True)
        images = {part: (x - mean) * (std > 0) / np.where(std > 0, std, 1) for part, x in images.items()}
    return data._replace(**{part: jnp.asarray(x, jnp.float32) for part, x in images.items()})


def factor(seed: int, how: str, size: float) -> np.ndarray:
    """What each of 64 pixels is multiplied by."""
    if how == "all alike":
        return np.full(64, size)
    return 10.0 ** np.random.default_rng([seed, 0, 1]).uniform(-size / 2, size / 2, 64)


def report(record, networks, scales) -> None:
    def best(network: str, how: str, size: float) -> np.ndarray:
        """Test accuracies of the seeds at the rate whose worst seed is best on validation images."""
        case = {"network": network, "how": how, "size": size}
        rate = record.best("rate", "valid", score=lambda valid: (valid.min(), np.median(valid)), **case)
        return record.values("accuracy", rate=rate, **case)

    alike = {n: np.stack([best(n, "all alike", float(s)) for s in scales]) for n in networks}
    sizes = [(0.0, "all alike", 1.0)] + [(float(d), "apart", float(d)) for d in DECADES[1:]]
    apart = {n: np.stack([best(n, how, size) for _, how, size in sizes]) for n in networks}
    rows = []
    for name in networks:
        good = scales[alike[name].min(1) >= GOOD]
        span = f"{good.min():g} to {good.max():g}" if len(good) else "none"
        rows.append((name, span, *(f"{np.median(a):.1%} ({a.min():.1%})" for a in apart[name])))
    columns = ("network", "scales of all pixels that train", *(f"{d:g} decades apart" for d, *_ in sizes))
    record.table(
        "accuracy on digits whose pixels were multiplied: median (worst seed), at the best rate", columns, rows
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for name, color in zip(networks, COLORS, strict=False):
        for ax, at, values in ((left, scales, alike[name]), (right, [d for d, *_ in sizes], apart[name])):
            ax.plot(at, np.median(values, 1), "o-", color=color, label=name, markersize=4)
            ax.fill_between(at, values.min(1), values.max(1), color=color, alpha=0.2)
    left.set(xscale="log", xlabel="all pixels times", ylabel="test accuracy: median and range")
    right.set(xlabel="sizes of pixels, decades apart")
    for ax in (left, right):
        ax.axhline(GOOD, color="gray", linewidth=0.8)
    left.legend()
    record.picture(figure)
    trains = {name: int((alike[name].min(1) >= GOOD).sum()) for name in networks}
    claim(record, "Inputs that are too small or too large stop a network, and batch norm mends it", trains, len(scales))
    widest = {name: int((apart[name].min(1) >= GOOD).sum()) for name in networks}
    claim(record, "Features of very different sizes slow a network down, and batch norm mends it", widest, len(sizes))


def claim(record, text: str, trains: dict[str, int], count: int) -> None:
    behind, too = (mends(trains, network) for network in ("batch", "batch, inputs too"))
    record.claim(
        text,
        source="lesson 2, the problem; lesson 3",
        measured=f"cases of {count} that train: " + "; ".join(f"{name} {n}" for name, n in trains.items()),
        verdict=behind if behind == too else f"behind every product: {behind}; on the inputs too: {too}",
    )


def mends(trains: dict[str, int], network: str) -> str:
    if trains[network] <= trains["none"]:
        return "no"
    return "yes" if trains[network] >= trains["none, scaled inputs"] else "a little"


if __name__ == "__main__":
    main()
