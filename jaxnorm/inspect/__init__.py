"""Looking at a network while it trains: what its layers see and make, as small arrays, by name and over time.

    capture, capture_linen, capture_nnx     every layer's input and output, without changing the model's code
    summarize, percentiles                  an activation (or a gradient) in a few numbers
    History                                 those numbers over the steps of a run; one .npz file
    running_statistics, drift               what batch norm remembers, and how far the batch is from it
    norms, update_ratios                    gradients and updates by layer

`capture_linen` and `capture_nnx` need Flax (extra `flax`), which is loaded when one of them is asked for.
"""

from typing import TYPE_CHECKING, Any

from jaxnorm.inspect.capture import Activation, Captured, capture
from jaxnorm.inspect.histogram import EDGES, percentiles
from jaxnorm.inspect.history import History
from jaxnorm.inspect.layers import Drift, drift, norms, running_statistics, update_ratios
from jaxnorm.inspect.summary import Summary, summarize

if TYPE_CHECKING:
    from jaxnorm.inspect.linen import capture_linen
    from jaxnorm.inspect.nnx import capture_nnx

__all__ = [
    "EDGES",
    "Activation",
    "Captured",
    "Drift",
    "History",
    "Summary",
    "capture",
    "capture_linen",
    "capture_nnx",
    "drift",
    "norms",
    "percentiles",
    "running_statistics",
    "summarize",
    "update_ratios",
]


def __getattr__(name: str) -> Any:
    if name == "capture_linen":
        from jaxnorm.inspect.linen import capture_linen

        return capture_linen
    if name == "capture_nnx":
        from jaxnorm.inspect.nnx import capture_nnx

        return capture_nnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
