"""What is left of "mean 0, variance 1" after training, and does any scale and bias undo the norm?

    python examples/after_training.py [--epochs 30] [--seeds 5] [--seed 0] [--quick]

The perceptron of `networks.py` (three hidden layers of 100 ReLUs, batch norm) on the digits, batches of 60, SGD with
momentum 0.9 at a rate of 0.1. After training, of every feature of every hidden layer, by the statistics of all training
images: the mean and the standard deviation that leave the norm, which are its bias and its scale. A norm is undone by
scale = sqrt(var + epsilon) and bias = mean, with which y = x; a feature counts as undone if both are within a tenth of
its standard deviation, which some are by chance: they are counted again with scales and biases dealt out anew among the
features of their layer, in a hundred ways. Then the test accuracy with the running averages, and with the statistics of
test batches of 2, 10 and 60 instead, as of a network that was left in training mode. And all of it with five epsilons.

Verdicts: mean 0 and variance 1 holds for a feature whose mean is within 0.1 and standard deviation within 10%; "yes" if
nine of ten features do, "no" if fewer than one of ten, else how many. Undoing is used if more features do it than by
chance in every seed. Running averages are better than a batch if the median over seeds of the difference is above a
point of test accuracy, and worse if it is below minus a point: "yes" if they are better than some and worse than none,
"no" if the other way round, else which is which. An epsilon does if accuracy is not more than a point below that with
1e-5; any will if all do that are as small as the lessons', up to 0.001.

Lesson 1, training and testing; lesson 3, scaling and shifting; lesson 4, the solution and inference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from experiment import COLORS, middle, options, recording
from matplotlib import pyplot as plt
from networks import Data, Trainer, digits, perceptron

import jaxnorm as jn

EPSILONS = (1e-8, 1e-5, 1e-3, 1e-1, 1e1)
BATCHES = (2, 10, 60)
WAYS = ("running", *(f"batches of {size}" for size in BATCHES))
USUAL, TINY = 1e-5, 1e-3  # TINY is the lessons' largest
CLOSE = 0.1


def main() -> None:
    chosen = options(__doc__, "after_training", seeds=5, epochs=30)
    epochs = 2 if chosen.quick else chosen.epochs
    epsilons = EPSILONS[1:2] if chosen.quick else EPSILONS
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    with recording("after_training", chosen, len(epsilons) * epochs) as record:
        data = digits(seeds)
        for epsilon in epsilons:
            network = perceptron("batch", epsilon=epsilon)
            settings = {"rate": jnp.full(len(seeds), 0.1)}
            trainer = Trainer(network, data, settings, seeds=seeds, batch_size=60)
            for _ in range(epochs):
                trainer.epoch()
                record.advance(f"epsilon {epsilon}")
            for seed, one, losses in zip(seeds, each(trainer, data), trainer.losses, strict=True):
                record.add(seed=seed, epsilon=epsilon, losses=losses, **look(network, *one, epsilon))
        report(record)


def each(trainer: Trainer, data: Data):
    """Parameters, statistics and data of one network after the other."""
    params, stats, _ = trainer.state
    return [jax.tree.map(lambda leaf, i=i: leaf[i], (params, stats, data)) for i in range(len(data.x))]


def outputs(params, data: Data, epsilon: float):
    """Of every norm, measured on all training images: their moments before it, and what leaves it."""
    x = data.x
    for layer in params[:-1]:
        m = jn.moments(x @ layer["kernel"], 0)
        after = jn.normalize(x @ layer["kernel"], m.mean, m.var, layer["scale"], layer["bias"], axis=0, epsilon=epsilon)
        yield layer, m, after
        x = jax.nn.relu(after)


def undone(params, data: Data, epsilon: float, dealt: np.random.Generator | None = None) -> float:
    """The share of features that leave their norm nearly as they came; or would, with each other's parameters."""
    off = []
    for layer, m, _ in outputs(params, data, epsilon):
        order = np.arange(len(m.mean)) if dealt is None else dealt.permutation(len(m.mean))
        sigma, scale, bias = jnp.sqrt(m.var + epsilon), layer["scale"][order], layer["bias"][order]
        off.append(jnp.maximum(jnp.abs(scale / sigma - 1), jnp.abs(bias - m.mean) / sigma))
    return float((jnp.stack(off) <= CLOSE).mean())


def look(network, params, stats, data: Data, epsilon: float) -> dict:
    """Of one trained network."""
    normalized = jnp.stack([y for _, _, y in outputs(params, data, epsilon)])  # [layers, images, features]
    mean, deviation = np.asarray(normalized.mean(1)), np.asarray(normalized.std(1))
    standard = (np.abs(mean) <= CLOSE) & (np.abs(deviation - 1) <= CLOSE)
    accuracy = lambda logits, labels: float((logits.argmax(-1) == labels).mean())
    found = {"running": accuracy(network.apply(params, stats, data.x_test, False, None)[0], data.y_test)}
    for size in BATCHES:
        parts = [slice(i, i + size) for i in range(0, len(data.x_test) // size * size, size)]
        logits = [network.apply(params, stats, data.x_test[part], True, None)[0] for part in parts]
        found[f"batches of {size}"] = accuracy(jnp.concatenate(logits), data.y_test[: len(parts) * size])
    dealt = np.random.default_rng(0)
    chance = np.mean([undone(params, data, epsilon, dealt) for _ in range(100)])
    shares = {"standard": float(standard.mean()), "undone": undone(params, data, epsilon), "chance": float(chance)}
    return {"mean": mean, "std": deviation, **shares, **found}


def report(record) -> None:
    epsilons = sorted({row["epsilon"] for row in record.rows})
    found = lambda key, epsilon=USUAL: 100 * record.values(key, epsilon=epsilon)
    columns = ("epsilon", "mean 0 and variance 1", "undone", "undone by chance", *(f"accuracy, {way}" for way in WAYS))
    keys = ("standard", "undone", "chance", *WAYS)
    rows = [(f"{epsilon:g}", *(middle(found(key, epsilon)) for key in keys)) for epsilon in epsilons]
    record.table("batch norm after training, percent of features and of test images: median (range)", columns, rows)
    claim_standard(record, found)
    claim_undone(record, found)
    claim_running(record, found)
    claim_epsilon(record, {epsilon: np.median(found("running", epsilon)) for epsilon in epsilons})
    draw(record, found, epsilons)


def claim_standard(record, found) -> None:
    standard = np.median(found("standard"))
    deviations = record.values("std", epsilon=USUAL)
    record.claim(
        "What leaves batch norm has mean 0 and variance 1",
        source="lesson 3; lesson 4, the technique",
        measured=f"after training {standard:.0f} % of the features are within a tenth of it; "
        f"standard deviations {middle(deviations)}",
        verdict=still_standard(standard),
    )


def still_standard(percent: float) -> str:
    if percent < 10:
        return "at first; after training no"
    return "yes" if percent >= 90 else f"for {percent:.0f} % of the features"


def claim_undone(record, found) -> None:
    undone, chance = found("undone"), found("chance")
    record.claim(
        "Scale and bias let the network undo the norm",
        source="lesson 4, the solution; Ioffe & Szegedy 2015, arXiv:1502.03167, section 3",
        measured=f"they undo it for {middle(undone)} % of the features, and dealt out anew for {middle(chance)} %",
        verdict=is_used(undone, chance),
    )


def is_used(undone: np.ndarray, chance: np.ndarray) -> str:
    """Seed by seed."""
    return "they could, and some do" if (undone > chance).all() else "they could, and do not"


def claim_running(record, found) -> None:
    record.claim(
        "At inference use the running averages, not the batch's statistics",
        source="lesson 1, testing; lesson 4, inference",
        measured="accuracy with " + "; ".join(f"{way} {middle(found(way))} %" for way in WAYS),
        verdict=better_running({way: found(way) for way in WAYS}),
    )


def better_running(accuracy: dict[str, np.ndarray]) -> str:
    """By the differences to each batch size, seed by seed."""
    ahead = {way: np.median(accuracy["running"] - accuracy[way]) for way in WAYS[1:]}
    better, worse = ([way for way in ahead if sign * ahead[way] > 1] for sign in (1, -1))
    than = lambda word, ways: f"{word} than {', '.join(ways)}"
    if better and worse:
        return f"they are {than('better', better)}, {than('worse', worse)}"
    if worse:
        return f"no, they are {than('worse', worse)}"
    return f"yes, they are {than('better', better)}" if better else "no difference here"


def claim_epsilon(record, accuracy: dict[float, float]) -> None:
    record.claim(
        "Epsilon is a tiny number: any will do",
        source="lesson 1, 1e-8; lesson 2, 0.001; lessons 3 and 4, 1e-5",
        measured="accuracy with " + "; ".join(f"{epsilon:g}: {value:.1f} %" for epsilon, value in accuracy.items()),
        verdict=any_does(accuracy),
    )


def any_does(accuracy: dict[float, float]) -> str:
    good, bad = (
        [epsilon for epsilon, value in accuracy.items() if (accuracy[USUAL] - value <= 1) == wanted]
        for wanted in (True, False)
    )
    listed = lambda epsilons: ", ".join(f"{epsilon:g}" for epsilon in epsilons)
    verdict = "no" if any(epsilon <= TINY for epsilon in bad) else "yes"
    return f"{verdict}: {listed(good)} will" + (f", {listed(bad)} will not" if bad else "")


def draw(record, found, epsilons) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    means, deviations = (record.values(key, epsilon=USUAL)[0] for key in ("mean", "std"))
    for layer, (mean, deviation, color) in enumerate(zip(means, deviations, COLORS, strict=False)):
        left.plot(mean, deviation, ".", color=color, label=f"hidden {layer + 1}")
    left.plot([0], [1], "k+", markersize=15)
    left.set(xlabel="mean", ylabel="standard deviation", title="what leaves the norms, per feature (first seed)")
    left.legend()
    for way, color in zip(WAYS, COLORS, strict=False):
        right.plot(epsilons, [np.median(found(way, epsilon)) for epsilon in epsilons], "o-", color=color, label=way)
    right.set(xscale="log", xlabel="epsilon", ylabel="test accuracy, %: median", title="statistics at inference")
    right.legend()
    record.picture(figure)


if __name__ == "__main__":
    main()
