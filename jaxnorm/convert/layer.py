"""Layer: a norm between two frameworks, as arrays and as the keywords of the function of its kind."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.group import group_norm, instance_norm
from jaxnorm.norms.layer import layer_norm, rms_norm
from jaxnorm.norms.weight import SpectralState, spectral_norm, weight_norm
from jaxnorm.running import RunningStats

FUNCTIONS = {
    f.__name__: f for f in (batch_norm, layer_norm, rms_norm, group_norm, instance_norm, weight_norm, spectral_norm)
}
SETTINGS = ("momentum", "epsilon", "ddof", "debias", "num_groups", "n_steps")  # what a constructor would be told


@dataclass(frozen=True, eq=False)
class Layer:
    """One norm, free of any framework: what `getattr(jaxnorm, kind)` takes. Arrays are NumPy's, copied.

    Args:
      kind: the function's name, "batch_norm" to "spectral_norm".
      scale, bias: of the features' shape; of a weight norm scale is g. The bias of an rms_norm (of Equinox)
        is to be added to what the function returns.
      stats: RunningStats of a batch norm, and of an instance norm that tracked them (torch); the inference of that one
        is `batch_norm` by them, per feature.
      weight: what a weight norm (v) or spectral norm normalizes, in Flax's layout: [*space, in, out], features last.
      spectral: SpectralState, whose u has the features' shape.
      dim: the number of the features' axis in torch's layout of `weight`: 1 for transposed convolutions.
      options: keywords of that function; with `stats` those of `batch_norm`.
    """

    kind: str
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    stats: RunningStats | None = None
    weight: np.ndarray | None = None
    spectral: SpectralState | None = None
    dim: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def settings(layer: Layer) -> dict[str, Any]:
    """The options of a layer, with the defaults of its function for those that it leaves out."""
    kind = "batch_norm" if layer.stats is not None else layer.kind
    parameters = inspect.signature(FUNCTIONS[kind]).parameters
    return {name: parameters[name].default for name in SETTINGS if name in parameters} | dict(layer.options)


def fail(rule: str, got: str, todo: str, kind: type[Exception] = ValueError) -> NoReturn:
    raise kind(f"convert: {rule}; got {got}. {todo}")
