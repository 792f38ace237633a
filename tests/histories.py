"""Histories for tests of pictures: a few layers whose numbers grow, each different from every other."""

from collections.abc import Iterable

import numpy as np

from jaxnorm.inspect import History, summarize

NASTY = (
    "</script><script>broken = 1</script>",
    "<!--<script>",
    "__proto__",
    "constructor",
    "{{data}}",
    "$&' \" \\u003c",
    "ä 層 \u2028 🙂",
)

EVEN = np.linspace(-8, 8, 65, dtype=np.float32)


def grown(
    layers: Iterable[str],
    steps: Iterable[int],
    seed: int = 0,
    widening: float = 0.0,
    running: str | None = None,
    broken_at: int | None = None,
    edges: np.ndarray = EVEN,
) -> History:
    """`widening` is what the deviation gains per step; `running` the layer with a running mean beside it."""
    rng = np.random.default_rng(seed)
    history = History(edges)
    for step in steps:
        summaries = {}
        for i, name in enumerate(layers):
            x = (rng.normal(size=600) * (0.5 + widening * step) + 0.1 * i + 0.02 * step).astype(np.float32)
            summaries[name] = summarize(np.full(600, np.nan, np.float32) if step == broken_at else x, edges=edges)
        history.record(step, summaries, {f"{running}/running mean": 0.1 * step + seed} if running else None)
    return history
