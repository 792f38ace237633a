"""The running statistics of a whole model, measured again: exact pooled moments instead of a moving average."""

import functools
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer

from jaxnorm.arguments import Call, wide
from jaxnorm.moments import Moments, merge, moments
from jaxnorm.nnx.adaptive import ConditionalBatchNorm
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.center import MeanOnlyBatchNorm
from jaxnorm.nnx.evo import EvoNormB0
from jaxnorm.nnx.norm import axes_of, where_of
from jaxnorm.nnx.renorm import BatchRenorm
from jaxnorm.running import RunningStats, pool

Model = TypeVar("Model", bound=nnx.Module)
MEASURED = (BatchNorm, nnx.BatchNorm, BatchRenorm, ConditionalBatchNorm, MeanOnlyBatchNorm, EvoNormB0)
_NONE = "recalibrate: a norm of a batch, not of domains and not whitening, must be training; got none in this call."
_MEASURED_CALLS: list[None] = []  # grows while a call that measures is traced
_PARTS = ("moments_mean", "moments_var", "moments_count")  # BatchStats, so that scan and vmap carry them as the others


def recalibrate(model: Model, batches: Iterable[Any], **kwargs: Any) -> Model:
    """Measure every running mean and variance of a model again, over a data set ("precise" batch norm).

    The norms train on each batch, the rest of the model is as it was set (in `eval()` without dropout), nothing else
    changes, and the moments of what enters each norm are pooled exactly: every value counts once, however unequal the
    batches are. For weights that no running average has seen: averaged ones, fine-tuned or quantized ones, or a model
    that moves to other data (AdaBN).

    Args:
      model: any NNX module with `BatchNorm` (ours, or Flax's own), `BatchRenorm`, `ConditionalBatchNorm`,
        `MeanOnlyBatchNorm` or `EvoNormB0` in it; statistics of other modules stay. Under `nnx.scan` and `nnx.vmap` too.
        It is not changed.
      batches: any iterable of what the model is called with; a tuple or list is several positional arguments. Wrap it
        in a progress bar if it is long. Batches of one shape are compiled once.
      kwargs: keywords of the call.

    Returns:
      A copy of the model with new statistics, in the mode that the model was in; a `count` is the number of batches.
      Statistics of norms that did not train (frozen ones, or ones whose call says so), or that saw no valid value, are
      as they were.

    Raises:
      ValueError: no batch; no norm that was training.

    >>> model = nnx.Sequential(nnx.BatchNorm(1, rngs=nnx.Rngs(0)))
    >>> batches = [jnp.array([[1.0], [4.0]]), jnp.array([[7.0], [10.0], [3.0]])]
    >>> norm = recalibrate(model, batches).layers[0]
    >>> norm.mean[...], norm.var[...]
    (Array([5.], dtype=float32), Array([10.], dtype=float32))

    Reference: Wu & Johnson 2021, arXiv:2105.07576, section 3; Li et al. 2016, arXiv:1603.04779 (AdaBN).
    """
    observed = nnx.clone(model)
    for _, norm in _norms(observed):
        norm.use_running_average = False
        mean, var = (jnp.zeros(v.shape, wide(v.dtype)) for v in (norm.mean, norm.var))
        for name, value in zip(_PARTS, (mean, var, jnp.zeros_like(var)), strict=True):
            setattr(norm, name, nnx.BatchStat(value))
        object.__setattr__(norm, "__class__", _measuring(type(norm)))
    graph, state = nnx.split(observed)

    @jax.jit
    def measured(state: Any, batch: Any) -> dict[str, Moments]:
        copy = nnx.merge(graph, state)
        copy(*(batch if isinstance(batch, (tuple, list)) else (batch,)), **kwargs)
        return {path: Moments(*(getattr(norm, name)[...] for name in _PARTS)) for path, norm in _norms(copy)}

    traced = len(_MEASURED_CALLS)
    found, seen = pool(lambda batch: measured(state, batch), batches)
    counts = [m.count for m in found.values()]
    # Under `nnx.jit` an earlier trace may have been taken, and then the counts tell.
    if len(_MEASURED_CALLS) == traced and not any(isinstance(c, Tracer) or jnp.any(c > 0) for c in counts):
        todo = "Leave use_running_average to the modules, or pass what makes it train."
        raise ValueError(f"{_NONE} {todo}")
    new = nnx.clone(model)
    for path, norm in _norms(new):
        _update(norm, found[path], seen)
    return new


def _norms(model: nnx.Module) -> list[tuple[str, Any]]:
    return [("/".join(map(str, path)), m) for path, m in nnx.iter_modules(model) if isinstance(m, MEASURED)]


@functools.cache
def _measuring(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The same class, which also pools the moments of what enters it. Made once: classes are registered for good.

    The measuring class stands right before the norm in the order of bases, so that a subclass of the norm reaches it by
    `super()`, with what it really hands to the norm.
    """
    norm: Any = next(base for base in kind.__mro__ if base in MEASURED)

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.mean.get_value()
        if issubclass(norm, BatchRenorm):  # what enters the next norm must not depend on the old statistics
            kwargs = {**kwargs, "r_max": 1.0, "d_max": 0.0}
        y = norm.__call__(self, x, *args, **kwargs)
        if self.mean.get_value() is not before:  # it trains
            _MEASURED_CALLS.append(None)
            checked = Call("recalibrate", x)
            others = checked.others(axes_of(checked, "axis", self.axis))
            groups = None if self.axis_name is None else self.axis_index_groups
            devices: dict[str, Any] = {"axis_name": self.axis_name, "axis_index_groups": groups}
            m = moments(checked.x, others, where=where_of(kwargs.get("mask")), **devices)
            so_far = _moments(self)
            m = merge(so_far, jax.tree.map(lambda part, kept: part.reshape(kept.shape), m, so_far))
            for name, part, kept in zip(_PARTS, m, so_far, strict=True):
                getattr(self, name).set_value(part.astype(kept.dtype))
        return y

    measuring = type(norm.__name__, (norm,), {"__call__": call, "__module__": norm.__module__})
    bases = (measuring,) if kind is norm else (kind, measuring)
    return type(kind.__name__, bases, {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _moments(norm: Any) -> Moments:
    """What earlier calls of the same norm saw in this batch."""
    return Moments(*(getattr(norm, name)[...] for name in _PARTS))


def _update(norm: Any, m: Moments, seen: int) -> None:
    ddof = getattr(norm, "ddof", 0)
    stats = RunningStats.from_moments(m, ddof=ddof, count=seen)
    for name, value in stats._asdict().items():
        variable = getattr(norm, name, None)
        if variable is not None:
            variable.set_value(jnp.where(m.count > ddof, value, variable[...]))
