"""Handwritten digits, with and without batch norm, at the same settings, in pure functions.

    python examples/digits.py [--epochs 40] [--learning-rate 0.003] [--batch-size 60] [--seed 0] [--quick]

Three hidden layers of 100 sigmoids, as in figure 1 of the batch-norm paper (Ioffe & Szegedy 2015, arXiv:1502.03167), on
scikit-learn's 1,797 real digits of 8 x 8 pixels. Both networks start from the same weights, see the same batches and
use the same optimizer. Parameters, optimizer state and running statistics are explicit pytrees that go into one jitted
step and come back; the two networks differ in whether there are any statistics.

Leaves `digits.png` (the curves, and the 15th, 50th and 85th percentiles of what enters one of the last sigmoids) and
`digits.json` (every number) in runs/digits/.

The settings are not the best for either network: `python examples/with_and_without.py` compares each at its own best.
With batch norm tests/test_examples.py asks for 97% of the test images.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxnorm as jn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTHS = (64, 100, 100, 100, 10)
VARIANTS = {"with batch norm": True, "without": False}
PERCENTILES = (15, 50, 85)


def load(seed: int):
    """1,347 training and 450 test images with pixels from 0 to 1, every digit in the same proportion in both."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    return train_test_split(images, labels, test_size=450, stratify=labels, random_state=seed)


def init(seed: int, normalized: bool):
    """Parameters and running statistics (None without batch norm) of every layer."""
    keys = jax.random.split(jax.random.key(seed), len(WIDTHS) - 1)
    glorot = jax.nn.initializers.glorot_uniform()
    params = [
        {"kernel": glorot(key, (a, b)), "scale": jnp.ones(b), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]
    return params, [jn.RunningStats.init(b) if normalized else None for b in WIDTHS[1:-1]]


def forward(params, stats, x, training: bool):
    """Logits, new statistics, and what enters the last sigmoids."""
    new_stats = []
    for layer, layer_stats in zip(params[:-1], stats, strict=True):
        x = x @ layer["kernel"]
        if layer_stats is None:
            x = x + layer["bias"]
        else:
            x, layer_stats = jn.batch_norm(x, layer_stats, layer["scale"], layer["bias"], training=training)
        new_stats.append(layer_stats)
        inputs, x = x, jax.nn.sigmoid(x)
    return x @ params[-1]["kernel"] + params[-1]["bias"], new_stats, inputs


def loss(params, stats, x, y, training: bool):
    logits, stats, _ = forward(params, stats, x, training)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.mean(), (stats, (logits.argmax(-1) == y).mean())


@functools.partial(jax.jit, static_argnums=5, donate_argnums=(0, 1, 2))
def train_step(params, stats, opt_state, x, y, optimizer):
    gradients, (stats, _) = jax.grad(loss, has_aux=True)(params, stats, x, y, training=True)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state


@functools.partial(jax.jit, static_argnums=4)
def evaluate(params, stats, x, y, training: bool):
    value, (_, accuracy) = loss(params, stats, x, y, training)
    return {"loss": value, "accuracy": accuracy}


@jax.jit
def percentiles(params, stats, x):
    """Of the first unit's input, over the images; the paper shows one typical sigmoid too."""
    *_, inputs = forward(params, stats, x, training=False)
    return jnp.percentile(inputs, jnp.array(PERCENTILES, jnp.float32), axis=0)[:, 0]


def train(options, data, normalized: bool, advance, history: dict) -> None:
    """One network from its first weights on. The history fills as it goes, so an interruption loses nothing."""
    x, x_test, y, y_test = data
    params, stats = init(options.seed, normalized)
    optimizer = optax.adam(options.learning_rate)
    opt_state = optimizer.init(params)
    order = np.random.default_rng(options.seed)
    history |= {"train loss": [], "test loss": [], "test accuracy": [], "percentiles": [], "seconds": 0.0, "final": {}}

    def record():
        for mode, training in (("train", True), ("inference", False)):
            on_train = evaluate(params, stats, x, y, training)
            on_test = evaluate(params, stats, x_test, y_test, training)
            numbers = {
                "train loss": on_train["loss"],
                "test loss": on_test["loss"],
                "test accuracy": on_test["accuracy"],
            }
            history["final"][mode] = {name: float(value) for name, value in numbers.items()}
        for name, value in history["final"]["inference"].items():
            history[name].append(value)
        history["percentiles"].append(np.asarray(percentiles(params, stats, x_test)).tolist())

    record()
    for _ in range(options.epochs):
        start = time.perf_counter()
        shuffled = order.permutation(len(x))
        for i in range(0, len(x) - options.batch_size + 1, options.batch_size):
            batch = shuffled[i : i + options.batch_size]
            params, stats, opt_state = train_step(params, stats, opt_state, x[batch], y[batch], optimizer)
        jax.block_until_ready(params)
        history["seconds"] += time.perf_counter() - start
        record()
        advance()


def report(histories: dict) -> Table:
    table = Table(title="handwritten digits at the last evaluation (accuracy: on test images)")
    for column in ("network", "mode", "train loss", "test loss", "accuracy", "seconds"):
        table.add_column(column, justify="left" if column in ("network", "mode") else "right")
    for name, history in histories.items():
        for mode, numbers in history.get("final", {}).items():
            # Train mode normalizes by the statistics of what it is given, inference mode by the running ones; without
            # batch norm there is no difference.
            if VARIANTS[name] or mode == "inference":
                row = (f"{numbers['train loss']:.4f}", f"{numbers['test loss']:.4f}", f"{numbers['test accuracy']:.2%}")
                table.add_row(name, mode if VARIANTS[name] else "either", *row, f"{history['seconds']:.1f}")
    return table


def picture(histories: dict, path: Path) -> None:
    colors = dict(zip(VARIANTS, ("#0072b2", "#d55e00"), strict=True))  # apart for colour-blind eyes too
    figure, axes = plt.subplot_mosaic([["accuracy", "loss"], list(VARIANTS)], figsize=(10, 7), layout="constrained")
    for name, history in histories.items():
        epochs = range(len(history["test accuracy"]))
        axes["accuracy"].plot(epochs, history["test accuracy"], color=colors[name], label=name)
        axes["loss"].plot(epochs, history["train loss"], color=colors[name], label=f"{name}, train")
        axes["loss"].plot(epochs, history["test loss"], color=colors[name], linestyle="--", label=f"{name}, test")
        low, middle, high = np.transpose(history["percentiles"])
        panel = axes[name]
        panel.fill_between(epochs, low, high, color=colors[name], alpha=0.25, label="15th to 85th percentile")
        panel.plot(epochs, middle, color=colors[name], label="median")
        panel.set(title=f"what enters one of the last sigmoids, {name}", ylabel="pre-activation")
    axes["accuracy"].set(title="test accuracy, inference mode", ylabel="accuracy")
    axes["loss"].set(title="cross-entropy, inference mode", ylabel="nats", yscale="log")
    low, high = zip(*(axes[name].get_ylim() for name in histories), strict=True)
    for name in VARIANTS:
        axes[name].set_ylim(min(low), max(high) + 0.25 * (max(high) - min(low)))  # room for the legend
    for name, panel in axes.items():
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        if panel.lines:  # a network that an interruption left out has none
            panel.legend(fontsize="small", loc="upper left" if name in VARIANTS else "best")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training images")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of Adam, for both networks")
    parser.add_argument("--batch-size", type=int, default=60, help="images per step")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order of batches")
    parser.add_argument("--output", type=Path, default=Path("runs/digits"), help="folder for the picture and numbers")
    parser.add_argument("--quick", action="store_true", help="two epochs: does it run?")
    options = parser.parse_args()
    if not 0 <= options.seed <= 10**9:
        parser.error(f"--seed must be from 0 to {10**9}; got {options.seed}")
    if options.quick:
        options.epochs = 2
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1; got {options.epochs}")
    if not 2 <= options.batch_size <= 1347:
        parser.error(f"--batch-size must be from 2 to 1347, the training images; got {options.batch_size}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output must be a folder that can be written; got {options.output} ({error})")
    return options


def main() -> None:
    options = parse()
    data = load(options.seed)
    histories: dict[str, dict] = {name: {} for name in VARIANTS}
    console = Console()
    try:
        with Progress(console=console) as progress:
            for name, normalized in VARIANTS.items():
                task = progress.add_task(name, total=options.epochs)
                train(options, data, normalized, lambda task=task: progress.advance(task), histories[name])
    except KeyboardInterrupt:
        console.print("Interrupted: what was measured so far is kept.")
    settings = {"jax": jax.__version__, "device": str(jax.devices()[0])} | vars(options)
    (options.output / "digits.json").write_text(json.dumps({"settings": settings} | histories, indent=1, default=str))
    console.print(report(histories))
    written = [options.output / "digits.json"]
    finished = {name: history for name, history in histories.items() if history.get("percentiles")}
    if finished:
        written.append(options.output / "digits.png")
        picture(finished, written[-1])
    console.print(f"wrote {' and '.join(map(str, written))}")


if __name__ == "__main__":
    main()
