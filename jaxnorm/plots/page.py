"""The distribution visualizer: histories side by side in one HTML file that loads nothing.

Python decides the numbers and their ranges, page.js draws them with plotly.js, which the plotly package brings along.
"""

import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from plotly.offline import get_plotlyjs

from jaxnorm.inspect import History, percentiles
from jaxnorm.plots.arguments import check_whole

FOLDER = Path(__file__).parent
PERCENTILES = np.array([15, 50, 85])


def distribution_page(
    histories: Mapping[str, History],
    path: str | os.PathLike,
    *,
    title: str = "Distributions while training",
    step_name: str = "step",
) -> None:
    """Write the interactive distribution visualizer: one HTML file, for any browser, without a network.

    One panel per history, side by side: the histogram of a layer at a step, its 15th, 50th and 85th percentile over all
    steps, mean and standard deviation and what was recorded beside them. A slider and a play button move through the
    steps, a list chooses the layer. `index.html#layer=hidden+1&step=10` opens at that layer and step.

    Args:
      histories: what to compare, by the name over each panel; of whole layers (`summarize` with axis=None), with at
        least one layer in common. Steps need not agree: a panel shows what it last recorded. Scalars called
        "layer/what" are drawn beside that layer's mean and deviation. Bins of equal width (np.linspace edges) show the
        shape of a distribution; the default ones, which widen from 0, show its decades.
      path: the file to write, in a folder that exists. About 5 MB, nearly all of it plotly.js.
      title: over the page.
      step_name: what one step is called, such as "epoch".

    Returns:
      None; the page is at `path`.

    Raises:
      TypeError: `histories` is not a mapping from names.
      ValueError: no history; a history without steps or layers; statistics per feature; no layer in common.
      OSError: the path cannot be written.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnorm.inspect import History, summarize
      >>> history = History()
      >>> for epoch in range(3):
      ...     history.record(epoch, {"dense": summarize(jnp.arange(9.0) * epoch)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page = os.path.join(folder, "index.html")
      ...     distribution_page({"plain": history}, page, step_name="epoch")
      ...     os.path.getsize(page) > 1_000_000
      True

    Reference: percentiles over time are figure 1 of Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    check(histories)
    parts = {
        "title": html.escape(title),
        "step_name": html.escape(step_name),
        "style": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "data": embedded(page_data(histories, step_name)),
        "plotly": get_plotlyjs(),
        "script": (FOLDER / "page.js").read_text(encoding="utf-8"),
    }
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    # In one pass, so that nothing that is put in is searched again.
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise type(error)(
            f"distribution_page: `path` must be a file that can be written; got {os.fspath(path)!r} "
            f"({error.strerror}). Name a file in a folder that exists."
        ) from error


def check(histories: Mapping[str, History]) -> None:
    """Everything that can be wrong with the histories, before any work."""
    if isinstance(histories, History) or not isinstance(histories, Mapping):  # a History maps names, too: of layers
        got = type(histories).__name__
        raise TypeError(
            f"distribution_page: `histories` must map names to histories; got a {got}. Write {{'a name': history}}."
        )
    if not histories:
        raise ValueError("distribution_page: `histories` must hold at least one; got none. Write {'a name': history}.")
    for name, history in histories.items():
        if not len(history.steps) or not history.names:
            got = f"{len(history.steps)} steps of {len(history.names)} layers in {name!r}"
            raise ValueError(f"distribution_page: a history must not be empty; got {got}. Record a summary first.")
        check_whole("distribution_page", history, history.names)
    if not set.intersection(*(set(history.names) for history in histories.values())):
        got = "; ".join(f"{name!r}: {', '.join(history.names)}" for name, history in histories.items())
        raise ValueError(
            f"distribution_page: histories must have a layer in common; got {got}. Record them under the same names, "
            "or write a page for each."
        )


def page_data(histories: Mapping[str, History], step_name: str) -> dict:
    """What page.js reads. Layers are counted, not named, so that no name can mean anything to JavaScript."""
    names = list(dict.fromkeys(name for history in histories.values() for name in history.names))
    return {
        "step_name": step_name,
        "even_bins": all(even(history.edges) for history in histories.values()),
        "steps": np.unique(np.concatenate([history.steps for history in histories.values()])).tolist(),
        "layers": names,
        "ranges": [shared_ranges(histories.values(), name) for name in names],
        "histories": [
            {
                "name": title,
                "steps": history.steps.tolist(),
                "edges": numbers(history.edges),
                "layers": [layer_data(history, name) if name in history.names else None for name in names],
            }
            for title, history in histories.items()
        ],
    }


def layer_data(history: History, name: str) -> dict:
    summary = history[name]
    return {
        "histogram": numbers(summary.histogram),
        "percentiles": numbers(percentiles(summary, PERCENTILES, history.edges)),
        "statistics": [[label, numbers(line)] for label, line in statistics(history, name).items()],
        "shares": {
            "dead": numbers(summary.dead),
            "saturated": numbers(summary.saturated),
            "not finite": numbers(summary.nonfinite),
        },
    }


def statistics(history: History, name: str) -> Mapping[str, ArrayLike]:
    """Mean and deviation of a layer, and the scalars recorded under "layer/what"."""
    beside = {key.removeprefix(f"{name}/"): line for key, line in history.scalars.items() if key.startswith(f"{name}/")}
    return {"mean": history[name].mean, "standard deviation": history[name].std} | beside


def shared_ranges(histories: Iterable[History], name: str) -> dict[str, list[float]]:
    """From the least to the largest number in any history: panels are compared, so they share axes."""
    having = [history for history in histories if name in history.names]
    lines = [percentiles(history[name], PERCENTILES, history.edges) for history in having]
    return {
        "histogram": extent([occupied(history, name) for history in having], margin=0.0),
        "percentiles": extent(lines),
        "statistics": extent([line for history in having for line in statistics(history, name).values()]),
    }


def occupied(history: History, name: str) -> np.ndarray:
    """The edges of all bins that ever held a number."""
    held = np.asarray(history[name].histogram).any(axis=0)
    return np.concatenate([history.edges[:-1][held], history.edges[1:][held]])


def even(edges: np.ndarray) -> bool:
    """Whether bins are of one width, but for the rounding of their edges."""
    widths = np.diff(edges)
    return bool(np.ptp(widths) < 0.01 * widths.max())


def extent(arrays: Iterable[ArrayLike], margin: float = 0.04) -> list[float]:
    values = np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])
    values = values[np.isfinite(values)]
    if not values.size:
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) or 0.5 * (low == high)
    return [low - room, high + room]


def numbers(array: ArrayLike) -> list:
    """Nested lists of exactly these numbers: integers as such, None for what JSON has no word for."""
    array = np.asarray(array)
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()


def embedded(data: dict) -> str:
    """JSON for inside <script>: `<` is escaped, so no name can end the element or open a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
