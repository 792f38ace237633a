"""Handwritten digits in Flax Linen, saved halfway, restored into a fresh model, trained on: as if nothing had happened?

    python examples/flax_linen.py [--epochs 20] [--seed 0] [--quick]

A small convolutional network with jaxnorm's batch norm on scikit-learn's 1,797 real digits of 8 x 8 pixels. Halfway
Orbax saves weights, running statistics and optimizer. One run goes on; another starts from other weights, restores the
checkpoint and goes on too. Both should end alike, and an image's logits should not depend on what it is batched with.

Leaves `results.json` (every number), a picture and the checkpoint `halfway` in runs/flax_linen/. flax_nnx.py is the
same program, line for line where the idioms allow: `diff -y examples/flax_linen.py examples/flax_nnx.py`.

tests/test_examples.py asks for 97% of the test images, the same bits after restoring, the same answers one at a time.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxnorm as jn
import jaxnorm.linen as jnl

BATCH_SIZE = 60
OPTIMIZER = optax.adamw(3e-3, weight_decay=0.01, mask=jn.decay_mask)  # scales and biases do not decay


class Digits(nn.Module):
    def setup(self):
        self.conv1 = nn.Conv(16, (3, 3), use_bias=False)  # the norm adds one
        self.norm1 = jnl.BatchNorm(momentum=0.9)
        self.conv2 = nn.Conv(32, (3, 3), strides=2, use_bias=False)
        self.norm2 = jnl.BatchNorm(momentum=0.9)
        self.dense = nn.Dense(10)

    def __call__(self, x, training: bool):
        x = nn.relu(self.norm1(self.conv1(x), use_running_average=not training))
        x = nn.relu(self.norm2(self.conv2(x), use_running_average=not training))
        return self.dense(x.reshape(len(x), -1))


class State(TrainState):
    batch_stats: Any


def load(seed: int):
    """1,347 training and 450 test images with pixels from 0 to 1, every digit in the same proportion in both."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1), labels.astype(np.int32)
    return train_test_split(images, labels, test_size=450, stratify=labels, random_state=seed)


@jax.jit  # one compilation, not one for every weight
def build(key: jax.Array) -> State:
    model = Digits()
    variables = model.init(key, np.zeros((1, 8, 8, 1), np.float32), training=False)
    return State.create(apply_fn=model.apply, tx=OPTIMIZER, **variables)


@jax.jit
def train_step(state: State, x, y) -> State:
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, x, training=True, mutable="batch_stats")
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updated["batch_stats"]

    gradients, batch_stats = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, batch_stats=batch_stats)


@jax.jit
def predict(state: State, x):
    """Logits by the running statistics."""
    return state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, x, training=False)


def train(state: State, epochs: int, seed: int, data, name: str, accuracies: dict) -> State:
    """From the optimizer's step until so many epochs are done. Seed and epoch alone decide the order of images."""
    x, x_test, y, y_test = data
    steps, accuracies[name] = len(x) // BATCH_SIZE, []
    for epoch in track(range(int(state.step) // steps, epochs), name):
        order = np.random.default_rng((seed, epoch)).permutation(len(x))
        for batch in order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE):
            state = train_step(state, x[batch], y[batch])
        accuracies[name].append(float((predict(state, x_test).argmax(-1) == y_test).mean()))
    return state


def save(path: Path, state: State) -> None:
    with ocp.StandardCheckpointer() as checkpointer:  # writes in the background; leaving it waits
        checkpointer.save(path, state, force=True)


def restore(path: Path, state: State) -> State:
    """The state says which arrays are expected; their values are the checkpoint's."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, state)


def values(state: State) -> dict:
    return jax.device_get({"parameters": state.params, "running statistics": state.batch_stats})


def differences(a: dict, b: dict) -> dict[str, float]:
    """The largest absolute difference among the parameters and among the running statistics."""
    pairs = {name: zip(*map(jax.tree.leaves, (a[name], b[name])), strict=True) for name in a}
    return {name: float(np.max([np.abs(a - b).max() for a, b in leaves])) for name, leaves in pairs.items()}


def experiment(options, results: dict) -> None:
    """Fills the results as it goes, so an interruption loses nothing."""
    data, accuracies, compared = load(options.seed), results["test accuracy"], results["largest difference"]
    state = build(jax.random.key(options.seed))
    first = values(state)
    state = train(state, options.epochs // 2, options.seed, data, "first half", accuracies)
    save(options.checkpoint, state)
    saved = values(state)
    compared["first weights, saved"] = differences(first, saved)
    state = train(state, options.epochs, options.seed, data, "uninterrupted", accuracies)
    end = values(state)
    compared["saved, end"] = differences(saved, end)

    state = restore(options.checkpoint, build(jax.random.key(options.seed + 1)))
    compared["saved, restored"] = differences(saved, values(state))
    state = train(state, options.epochs, options.seed, data, "restored", accuracies)
    compared["end, end after restoring"] = differences(end, values(state))

    together, alone = predict(state, data[1]), np.concatenate([predict(state, image[None]) for image in data[1]])
    results["one at a time"] = {
        "largest difference of logits": float(np.abs(together - alone).max()),
        "other answers": int((together.argmax(-1) != alone.argmax(-1)).sum()),
    }


def report(results: dict) -> Table:
    table = Table("", "parameters", "running statistics", title="largest differences")
    for name, numbers in results["largest difference"].items():
        table.add_row(name, *(f"{number:.2g}" if number else "identical" for number in numbers.values()))
    return table


def picture(results: dict, path: Path) -> None:
    """Test accuracy epoch by epoch; the two second halves are dashed differently, since one should cover the other."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, half = figure.subplots(), len(results["test accuracy"].get("first half", ()))
    for (name, accuracies), style in zip(results["test accuracy"].items(), ("-", "-", "--"), strict=False):
        first = 1 if name == "first half" else 1 + half
        axes.plot(range(first, first + len(accuracies)), accuracies, style, marker=".", label=name)
    axes.set(xlabel="passes over the training images", ylabel="test accuracy")
    axes.legend()
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    folder = Path("runs") / Path(__file__).stem
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images, saved after half")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order of batches")
    parser.add_argument("--output", type=Path, default=folder, help="folder for the numbers and the checkpoint")
    parser.add_argument("--quick", action="store_true", help="two epochs: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.epochs = 2
    if not 0 <= options.seed <= 10**9:
        parser.error(f"--seed must be from 0 to {10**9}; got {options.seed}")
    if options.epochs < 2:
        parser.error(f"--epochs must be at least 2, to have a middle; got {options.epochs}")
    options.checkpoint = options.output.absolute() / "halfway"  # Orbax takes absolute paths only
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").touch()
        there = [path.name for path in options.checkpoint.iterdir()] if options.checkpoint.exists() else []
        if there and "_CHECKPOINT_METADATA" not in there:  # what Orbax leaves; only a checkpoint is overwritten
            raise FileExistsError("what is in halfway/ is no checkpoint")
    except OSError as error:
        rule = "--output must be a folder to write results.json and halfway/ in"
        parser.error(f"{rule}; got {options.output}: {error}. Name another.")
    return options


def main() -> None:
    options = parse()
    console = Console()
    settings = {"jax": jax.__version__, "flax": flax.__version__, "device": str(jax.devices()[0])} | vars(options)
    results = {"settings": settings, "test accuracy": {}, "largest difference": {}, "one at a time": {}}
    try:
        experiment(options, results)
    except KeyboardInterrupt:
        console.print("Interrupted: what was measured so far is kept.")
    (options.output / "results.json").write_text(json.dumps(results, indent=1, default=str))
    picture(results, options.output / f"{Path(__file__).stem}.png")
    console.print(report(results))
    for name, accuracies in results["test accuracy"].items():
        console.print(f"test accuracy, {name}:", *(f"{accuracy:.2%}" for accuracy in accuracies[-1:]))
    for name, number in results["one at a time"].items():
        console.print(f"one image at a time instead of all, {name}: {number:.2g}")
    console.print(f"wrote to {options.output}")


if __name__ == "__main__":
    main()
