"""Still pictures of a history, on matplotlib axes of yours or new ones."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from jaxnorm.inspect import History, percentiles
from jaxnorm.plots.arguments import check_whole, chosen

# Okabe & Ito's colours, apart for colour-blind eyes, without the yellow that white paper swallows.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
PERCENTILES = np.array([15, 50, 85])


def plot_percentiles(history: History, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Median of each layer over the steps, in a band from the 15th to the 85th percentile.

    Args:
      history: of whole layers (`summarize` with axis=None).
      names: of layers; None is all of them.
      ax: matplotlib Axes to draw on; None is the current ones.

    Returns:
      The Axes.

    Raises:
      ValueError: the history is empty, has no layer of that name, or has it per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.inspect import History, summarize
      >>> history = History()
      >>> for step in (0, 10, 20):
      ...     history.record(step, {"dense": summarize(jnp.arange(9.0) * step)}, loss=1 / (step + 1))
      >>> ax = plot_percentiles(history)
      >>> ax.lines[0].get_ydata()[-1].round(-1)  # the median of 0, 20, ..., 160
      np.float32(80.0)

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, figure 1.
    """
    names = chosen("plot_percentiles", "names", names, history.names)
    check_whole("plot_percentiles", history, names)
    ax = plt.gca() if ax is None else ax
    for i, name in enumerate(names):
        low, middle, high = percentiles(history[name], PERCENTILES, history.edges)
        color = COLORS[i % len(COLORS)]
        ax.fill_between(history.steps, low, high, color=color, alpha=0.25, linewidth=0)
        ax.plot(history.steps, middle, color=color, label=name)
    ax.set(xlabel="step", ylabel="median, and 15th to 85th percentile")
    ax.legend()
    return ax


def plot_histograms(history: History, name: str, steps: Sequence[int] | None = None, ax: Axes | None = None) -> Axes:
    """Histogram of one layer at chosen steps, the later the lighter.

    Args:
      history: of whole layers (`summarize` with axis=None).
      name: of a layer.
      steps: recorded steps; None is the first, the last and up to three between.
      ax: matplotlib Axes to draw on; None is the current ones.

    Returns:
      The Axes.

    Raises:
      ValueError: the history is empty, has no such layer or step, or has the layer per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.inspect import History, summarize
      >>> history = History()
      >>> for step in (0, 10, 20):
      ...     history.record(step, {"dense": summarize(jnp.arange(9.0) * step)})
      >>> ax = plot_histograms(history, "dense", steps=[0, 20])
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['step 0', 'step 20']

    Reference: none; the counts are those of `jaxnorm.inspect.summarize`.
    """
    (name,) = chosen("plot_histograms", "name", [name], history.names)
    check_whole("plot_histograms", history, [name])
    recorded = history.steps.tolist()
    spread = np.unique(np.linspace(0, len(recorded) - 1, 5).round().astype(int))
    steps = chosen("plot_histograms", "steps", steps, recorded) if steps is not None else [recorded[i] for i in spread]
    ax = plt.gca() if ax is None else ax
    counts = np.asarray(history[name].histogram)
    for step, shade in zip(steps, np.linspace(0, 0.85, len(steps)), strict=True):
        color = plt.get_cmap("cividis")(shade)  # even in lightness, made for colour-blind eyes
        ax.stairs(counts[recorded.index(step)], history.edges, color=color, label=f"step {step}")
    ax.set(title=name, ylabel="count")
    ax.legend()
    return ax


def plot_scalars(history: History, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Scalars of a history, such as losses and gradient norms, over the steps.

    Args:
      history: with scalars.
      names: of scalars; None is all of them.
      ax: matplotlib Axes to draw on; None is the current ones.

    Returns:
      The Axes.

    Raises:
      ValueError: the history has no scalars, or none of that name.

    Example:
      >>> from jaxnorm.inspect import History
      >>> history = History()
      >>> for step in (0, 10, 20):
      ...     history.record(step, loss=1 / (step + 1))
      >>> ax = plot_scalars(history, ["loss"])
      >>> ax.set_yscale("log")

    Reference: none; the numbers are those that were recorded.
    """
    names = chosen("plot_scalars", "names", names, list(history.scalars))
    ax = plt.gca() if ax is None else ax
    for i, name in enumerate(names):
        ax.plot(history.steps, history.scalars[name], color=COLORS[i % len(COLORS)], label=name)
    ax.set(xlabel="step")
    ax.legend()
    return ax
