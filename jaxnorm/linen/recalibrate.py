"""The running statistics of a whole model, measured again: exact pooled moments instead of a moving average."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import union_filters

from jaxnorm.linen.adaptive import ConditionalBatchNorm
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.center import MeanOnlyBatchNorm
from jaxnorm.linen.evo import EvoNormB0
from jaxnorm.linen.parameters import canonical, groups_of, mask_of
from jaxnorm.linen.renorm import BatchRenorm
from jaxnorm.linen.running import widened
from jaxnorm.moments import Moments, merge, moments
from jaxnorm.running import RunningStats, pool

MEASURED = (BatchNorm, nn.BatchNorm, BatchRenorm, ConditionalBatchNorm, MeanOnlyBatchNorm, EvoNormB0)
_CALLS = itertools.count()
_NONE = "recalibrate: a norm of a batch, not of domains and not whitening, must be training; got none in this call."
_MOMENTS = "moments_of_this_batch"  # beside mean and var, so that scan and vmap carry it along with them


def recalibrate(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    method: Callable[..., Any] | str | None = None,
    mutable: Any = (),
    **kwargs: Any,
) -> dict[str, Any]:
    """Measure every running mean and variance of a model again, over a data set ("precise" batch norm).

    The model runs in training mode on each batch, nothing else of it changes, and the moments of what enters each norm
    are pooled exactly: every value counts once, however unequal the batches are. For weights that no running average
    has seen: averaged ones, fine-tuned or quantized ones, or a model that moves to other data (AdaBN).

    Args:
      model: any Linen module with `BatchNorm` (ours, or Flax's own), `BatchRenorm`, `ConditionalBatchNorm`,
        `MeanOnlyBatchNorm` or `EvoNormB0` in it; statistics of other modules stay. Under `nn.scan` and `nn.vmap` too.
      variables: as for `model.apply`; not changed.
      batches: any iterable of what the model is called with; a tuple or list is several positional arguments. Wrap it
        in a progress bar if it is long. Batches of one shape are compiled once.
      kwargs: keywords of the call, for example training=True; the norms must be training. Also `rngs`.
      method, mutable: as for `model.apply`; collections besides batch_stats that must be mutable.

    Returns:
      The variables with new `batch_stats`; a `count` is the number of batches. Statistics of norms that did not train
      (frozen ones), or that saw no valid value, are as they were.

    Raises:
      ValueError: no batch; no norm that was training.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> model = nn.Sequential([nn.BatchNorm(use_running_average=False)])
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 1)))
      >>> batches = [jnp.array([[1.0], [4.0]]), jnp.array([[7.0], [10.0], [3.0]])]
      >>> jnl.recalibrate(model, variables, batches)["batch_stats"]["layers_0"]
      {'mean': Array([5.], dtype=float32), 'var': Array([10.], dtype=float32)}

    Reference: Wu & Johnson 2021, arXiv:2105.07576, section 3; Li et al. 2016, arXiv:1603.04779 (AdaBN).
    """
    ddofs: dict[tuple[str, ...], int] = {}
    start = _with_moments(variables.get("batch_stats", {}))
    if not start:
        raise ValueError(f"{_NONE} Give the variables of a model with norms, `batch_stats` among them.")
    # `nn.jit` keeps its traces by what is mutable, and must not take one of another call, which measures for that.
    changing = union_filters(union_filters(mutable, "batch_stats"), f"jaxnorm.recalibrate {next(_CALLS)}")

    def measure(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        norm = context.module
        if context.method_name != "__call__" or not isinstance(norm, MEASURED) or norm.is_initializing():
            return call(*args, **kwargs)
        before, so_far = (norm.get_variable("batch_stats", name) for name in ("mean", _MOMENTS))
        # What enters the next norm must not depend on the old statistics.
        if isinstance(norm, BatchRenorm) and "r_max" in inspect.signature(call).parameters:
            kwargs = {**kwargs, "r_max": 1.0, "d_max": 0.0}
        y = call(*args, **kwargs)
        trained = norm.get_variable("batch_stats", "mean") is not before
        # A subclass that called its norm's own __call__ has been measured there.
        if trained and norm.get_variable("batch_stats", _MOMENTS) is so_far:
            x = jnp.asarray(args[0] if args else kwargs["x"])
            others = tuple(a for a in range(x.ndim) if a not in canonical(x.ndim, norm.axis))
            devices = {"axis_name": norm.axis_name, "axis_index_groups": groups_of(norm)}
            m = moments(x, others, where=mask_of(kwargs.get("mask")), **devices)
            merged = merge(so_far, m)  # with what an earlier call of the same norm saw
            merged = jax.tree.map(lambda new, kept: new.astype(kept.dtype), merged, so_far)
            norm.put_variable("batch_stats", _MOMENTS, merged)
            ddofs[norm.path] = getattr(norm, "ddof", 0)
        return y

    @jax.jit
    def measured(variables: Any, start: Any, batch: Any) -> Any:
        args = batch if isinstance(batch, (tuple, list)) else (batch,)
        with nn.intercept_methods(measure):
            _, new = model.apply({**variables, "batch_stats": start}, *args, method=method, mutable=changing, **kwargs)
        return _moments_of(new["batch_stats"])

    found, seen = pool(lambda batch: measured(variables, start, batch), batches)
    if not ddofs:
        todo = "Pass what makes it train (training=True, use_running_average=False, ...)."
        raise ValueError(f"{_NONE} {todo}")
    return {**variables, "batch_stats": _updated(variables["batch_stats"], found, ddofs, seen)}


def _is_norm(tree: Any) -> bool:
    return isinstance(tree, Mapping) and {"mean", "var"} <= tree.keys()


def _with_moments(tree: Any) -> Any:
    """Beside every mean and variance, the moments of nothing."""
    if not isinstance(tree, Mapping):
        return tree
    tree = {name: _with_moments(part) for name, part in tree.items()}
    if _is_norm(tree):
        mean, var = (jnp.zeros_like(widened(nn.unbox(tree[name]))) for name in ("mean", "var"))
        tree[_MOMENTS] = Moments(mean, var, jnp.zeros_like(var))
    return tree


def _moments_of(tree: Any) -> Any:
    """The moments alone, by the same paths."""
    if _is_norm(tree):
        return tree[_MOMENTS]
    parts = {name: _moments_of(part) for name, part in tree.items() if isinstance(part, Mapping)}
    return {name: part for name, part in parts.items() if part != {}}


def _updated(tree: Any, found: Any, ddofs: Mapping[tuple[str, ...], int], seen: int, path: tuple[str, ...] = ()) -> Any:
    if isinstance(found, Moments):
        if path not in ddofs:
            return tree
        new = RunningStats.from_moments(found, ddof=ddofs[path], count=seen)._asdict()
        measured = found.count > ddofs[path]
        keep = lambda name: jax.tree.map(lambda old: jnp.where(measured, new[name], old), tree[name])
        return {name: keep(name) if name in new else value for name, value in tree.items()}
    return {
        name: _updated(part, found[name], ddofs, seen, (*path, name)) if name in found else part
        for name, part in tree.items()
    }
