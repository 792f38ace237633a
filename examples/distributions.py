"""What enters each layer's sigmoids while a network learns, with and without batch norm, as an interactive page.

    python examples/distributions.py [--epochs 30] [--learning-rate 0.003] [--batch-size 60] [--seed 0] [--quick]

Five hidden layers of 100 sigmoids on scikit-learn's 1,797 real digits of 8 x 8 pixels; both networks start from the
same weights, see the same batches and use the same optimizer. Before training and after every epoch the images go
through each network in training mode, and of every layer the numbers that enter its sigmoids are summarized; with batch
norm also what enters the norm, with the running mean and standard deviation that follow it.

Leaves the page `index.html`, which any browser opens without a network, a still picture `distributions.png`, and one
history per network, `with.npz` and `without.npz`, in runs/distributions/. Histories are written as they grow. What an
earlier run left goes to before/ if it was finished and not a quick one, and gives way otherwise.

Look at the inputs of the last sigmoids: without batch norm they spread until many are beyond 4, where a sigmoid is flat
("saturated" on the page). Batch norm does not hold their standard deviation at 1, the learned scale widens it, but
slowly and evenly. The program prints both.
"""

import argparse
import functools
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

import jaxnorm as jn
from jaxnorm.inspect import History, percentiles, summarize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxnorm.plots import distribution_page, plot_percentiles

WIDTHS = (64, 100, 100, 100, 100, 100, 10)
HIDDEN = [f"hidden {i}" for i in range(1, len(WIDTHS) - 1)]
EDGES = np.linspace(-20, 20, 161, dtype=np.float32)  # of one width, so that a bell looks like a bell
QUICK = 2  # epochs
PICTURES = ("index.html", "distributions.png")
VARIANTS = {"with batch norm": "with.npz", "without": "without.npz"}


def load():
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


def init(seed: int, normalized: bool):
    """Parameters and running statistics (None without batch norm) of every layer."""
    keys = jax.random.split(jax.random.key(seed), len(WIDTHS) - 1)
    glorot = jax.nn.initializers.glorot_uniform()
    params = [
        {"kernel": glorot(key, (a, b)), "scale": jnp.ones(b), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]
    return params, [jn.RunningStats.init(b) if normalized else None for b in WIDTHS[1:-1]]


def forward(params, stats, x):
    """Logits, new statistics, and by name what enters each norm and each sigmoid."""
    new_stats, seen = [], {}
    for name, layer, old in zip(HIDDEN, params[:-1], stats, strict=True):
        x = x @ layer["kernel"]
        if old is None:
            x, new = x + layer["bias"], None
        else:
            seen[before(name)] = x
            x, new = jn.batch_norm(x, old, layer["scale"], layer["bias"], training=True)
        new_stats.append(new)
        seen[name] = x
        x = jax.nn.sigmoid(x)
    return x @ params[-1]["kernel"] + params[-1]["bias"], new_stats, seen


def before(name: str) -> str:
    return f"{name}, before the norm"


def loss(params, stats, x, y):
    logits, stats, seen = forward(params, stats, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), (stats, seen, logits)


@functools.partial(jax.jit, static_argnums=5, donate_argnums=(0, 1, 2))
def train_step(params, stats, opt_state, x, y, optimizer):
    gradients, (stats, _, _) = jax.grad(loss, has_aux=True)(params, stats, x, y)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state


@jax.jit
def measure(params, stats, x, y):
    """Summaries of what enters every norm and sigmoid; loss, accuracy and running statistics as scalars."""
    value, (_, seen, logits) = loss(params, stats, x, y)
    scalars = {"loss": value, "accuracy": (logits.argmax(-1) == y).mean()}
    for name, of in zip(HIDDEN, stats, strict=True):
        if of is not None:
            # As if all units were one: their mean, and the variance within units plus that between them.
            scalars[f"{before(name)}/running mean"] = of.mean.mean()
            scalars[f"{before(name)}/running standard deviation"] = jnp.sqrt(of.var.mean() + of.mean.var())
    return {name: summarize(values, edges=EDGES, saturation=4.0) for name, values in seen.items()}, scalars


@functools.cache  # once in a run, when there is something new
def put_aside(folder: Path) -> None:
    """An earlier run's files, so that none of them stands beside a new one's."""
    keep, before = finished(folder), folder / "before"
    for path in [folder / name for name in (*VARIANTS.values(), *PICTURES)]:
        if not keep:
            path.unlink(missing_ok=True)
        elif path.exists():
            before.mkdir(exist_ok=True)
            path.replace(before / path.name)


def finished(folder: Path) -> bool:
    """Both networks have come equally far, and further than in a quick run."""
    try:
        steps = [len(History.load(folder / file).steps) for file in VARIANTS.values()]
    except (OSError, ValueError):
        return False
    return min(steps) == max(steps) > QUICK + 1


def train(options, data, normalized: bool, history: History, path: Path, advance) -> None:
    """One network from its first weights on; the history is saved as it grows, so an interruption loses nothing."""
    x, y = data
    params, stats = init(options.seed, normalized)
    optimizer = optax.adam(options.learning_rate)
    opt_state = optimizer.init(params)
    order = np.random.default_rng(options.seed)
    for epoch in range(options.epochs + 1):
        history.record(epoch, *measure(params, stats, x, y))
        put_aside(path.parent)
        history.save(path)
        if epoch == options.epochs:
            return
        shuffled = order.permutation(len(x))
        for i in range(0, len(x) - options.batch_size + 1, options.batch_size):
            batch = shuffled[i : i + options.batch_size]
            params, stats, opt_state = train_step(params, stats, opt_state, x[batch], y[batch], optimizer)
        advance()


def report(histories: dict[str, History]) -> Table:
    table = Table(title="what enters the last layer's sigmoids, and the accuracy, on the training images")
    for column in ("network", "epoch", "mean", "std", "15%", "50%", "85%", "accuracy"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, history in histories.items():
        summary = history[HIDDEN[-1]]
        values = [summary.mean, summary.std, *percentiles(summary, (15, 50, 85), history.edges)]
        cells = [f"{line[-1]:.3f}" for line in values]
        table.add_row(name, str(history.steps[-1]), *cells, f"{history.scalars['accuracy'][-1]:.2%}")
    return table


def picture(histories: dict[str, History], path: Path) -> None:
    """The first and the last layer of each network, all on one axis of percentiles."""
    figure, axes = plt.subplots(1, len(histories), figsize=(10, 4), sharey=True, squeeze=False, layout="constrained")
    for ax, (name, history) in zip(axes[0], histories.items(), strict=True):
        plot_percentiles(history, [HIDDEN[0], HIDDEN[-1]], ax)
        ax.set(title=f"what enters the sigmoids, {name}", xlabel="epoch")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30, help="passes over the images")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of Adam, for both networks")
    parser.add_argument("--batch-size", type=int, default=60, help="images per step")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of batches")
    parser.add_argument("--output", type=Path, default=Path("runs/distributions"), help="folder for page and histories")
    parser.add_argument("--quick", action="store_true", help="two epochs: does it run?")
    options = parser.parse_args()
    if not 0 <= options.seed <= 10**9:
        parser.error(f"--seed must be from 0 to {10**9}; got {options.seed}")
    if options.quick:
        options.epochs = QUICK
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1; got {options.epochs}")
    if not 2 <= options.batch_size <= 1797:
        parser.error(f"--batch-size must be from 2 to 1797, the images; got {options.batch_size}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output must be a folder that can be written; got {options.output} ({error})")
    return options


def main() -> None:
    options = parse()
    data = load()
    histories = {name: History(EDGES) for name in VARIANTS}
    console = Console()
    try:
        with Progress(console=console) as progress:
            for name, file in VARIANTS.items():
                task = progress.add_task(name, total=options.epochs)
                advance = functools.partial(progress.advance, task)
                train(options, data, name == "with batch norm", histories[name], options.output / file, advance)
    except KeyboardInterrupt:
        console.print("Interrupted: what was measured so far is kept.")
    begun = {name: history for name, history in histories.items() if len(history.steps)}
    if not begun:
        return
    page, still = (options.output / name for name in PICTURES)
    distribution_page(begun, page, title="What enters the sigmoids, with and without batch norm", step_name="epoch")
    picture(begun, still)
    console.print(report(begun))
    console.print(f"wrote {page}, {still} and {len(begun)} histories; open {page} in a browser")


if __name__ == "__main__":
    main()
