"""Numbers per layer of a tree: running statistics and their drift, norms of gradients, sizes of updates.

Trees are those of Flax Linen, NNX or one's own; a layer is the path to what holds the arrays, joined by `/`, as the
captures of `jaxnorm.inspect` name it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.arguments import check_number, wide
from jaxnorm.moments import Moments
from jaxnorm.rules import square
from jaxnorm.running import RunningStats

# Keys that wrap one array and say nothing of it: Flax's boxes for metadata and for NNX variables.
_BOXES = frozenset({"value", "raw_value"})


class Drift(NamedTuple):
    """How far a batch is from running statistics, per feature.

    Args:
      mean: the distance of the means in running standard deviations, signed.
      var: the batch's variance divided by the running one.
    """

    mean: jax.Array
    var: jax.Array


def drift(stats: RunningStats, m: Moments, *, epsilon: float = 1e-5) -> Drift:
    """How far a batch's statistics are from the running ones: what inference would get wrong by.

        mean = (m.mean - stats.mean) / sqrt(stats.var + epsilon)       var = (m.var + epsilon) / (stats.var + epsilon)

    Args:
      stats: RunningStats, such as `running_statistics` finds.
      m: Moments of what enters the norm, of the same shape: `jn.moments(captured[name].input, axes)`.
      epsilon: the norm's, so that constant features have a finite drift.

    Returns:
      Drift, of stats' shape. No drift is mean 0, var 1. NaN where the batch has no value.

    Raises:
      ValueError: shapes differ; a negative epsilon.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> stats = jn.RunningStats(mean=jnp.array([1.0]), var=jnp.array([4.0]), count=jnp.array([9.0]))
      >>> drift(stats, jn.moments(jnp.array([[4.0], [6.0]]), 0), epsilon=0.0)
      Drift(mean=Array([2.], dtype=float32), var=Array([0.25], dtype=float32))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2 (inference by statistics of training).
    """
    if stats.mean.shape != m.mean.shape:
        raise ValueError(
            f"drift: both must describe the same features; got stats of shape {stats.mean.shape}, moments of shape "
            f"{m.mean.shape}. Take moments over every axis but the features'."
        )
    check_number("drift", "epsilon", epsilon, "must not be negative", "It is the norm's.")
    known = lambda value: jnp.where(m.count > 0, value, jnp.nan)
    deviation = jnp.sqrt(stats.var + epsilon).astype(stats.mean.dtype)
    return Drift(known((m.mean - stats.mean) / deviation), known((m.var + epsilon) / (stats.var + epsilon)))


def running_statistics(tree: Any) -> dict[str, RunningStats]:
    """The running statistics of every norm in a tree: wherever arrays called `mean` and `var` stand side by side.

    Args:
      tree: Linen's `variables["batch_stats"]`, an NNX state (`nnx.state(model, nnx.BatchStat)`), or any other tree.

    Returns:
      Layer -> RunningStats, in the tree's order. `count` is the tree's where it keeps one, otherwise 0.

    Raises:
      ValueError: there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> batch_stats = {"block": {"BatchNorm_0": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}}
      >>> list(running_statistics(batch_stats))
      ['block/BatchNorm_0']

    Reference: as `drift`.
    """
    layers: dict[str, dict[str, jax.Array]] = {}
    for layer, name, leaf in _leaves(tree):
        if name in RunningStats._fields:
            layers.setdefault(layer, {})[name] = leaf
    found = {
        layer: RunningStats(parts["mean"], parts["var"], parts.get("count", jnp.zeros(parts["var"].shape, jnp.float32)))
        for layer, parts in layers.items()
        if {"mean", "var"} <= parts.keys()
    }
    if not found:
        names = sorted({layer for layer, _, _ in _leaves(tree)})
        raise ValueError(
            "running_statistics: the tree must hold arrays called mean and var side by side; got layers "
            f"{', '.join(names) or 'none'}. Linen keeps them in variables['batch_stats'], NNX in BatchStat variables."
        )
    return found


def norms(tree: Any) -> dict[str, jax.Array]:
    """The Euclidean norm of each layer's arrays together, as of gradients.

        norm = sqrt(sum over the layer's arrays of sum(|g|^2))

    Args:
      tree: gradients or parameters: Linen's `params`, an NNX state, dicts, lists, named tuples. Integers and keys are
        passed over. An array that stands alone is a layer by itself.

    Returns:
      Layer -> norm, a scalar of at least float32, in the tree's order. Works under jit.

    Raises:
      Nothing: any tree has layers or none.

    Example:
      >>> import jax.numpy as jnp
      >>> norms({"dense": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}, "scale": jnp.array([2.0])})
      {'dense': Array(5., dtype=float32), 'scale': Array(2., dtype=float32)}

    Reference: norms of gradients by layer, as in Glorot & Bengio 2010, "Understanding the difficulty of training deep
    feedforward neural networks", section 4.2.
    """
    squares: dict[str, jax.Array] = {}
    for layer, _, leaf in _leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            total = jnp.sum(square(leaf.astype(wide(leaf.dtype))))
            squares[layer] = squares[layer] + total.astype(squares[layer].dtype) if layer in squares else total
    return {layer: jnp.sqrt(value) for layer, value in squares.items()}


def update_ratios(params: Any, updates: Any) -> dict[str, jax.Array]:
    """How large each layer's update is beside its parameters; about 1e-3 is usual.

        ratio = norm(updates) / norm(params)        0 where the parameters are all 0

    A layer of zeros (a fresh bias) has no scale to measure its update by.

    Args:
      params: as `norms` takes.
      updates: what is added to them (optax's updates, or new minus old), the same layers.

    Returns:
      Layer -> ratio, a scalar, as `norms`. Works under jit.

    Raises:
      ValueError: other layers in one than in the other.

    Example:
      >>> import jax.numpy as jnp
      >>> update_ratios({"dense": jnp.array([3.0, 4.0])}, {"dense": jnp.array([0.0, 0.01])})["dense"].round(4)
      Array(0.002, dtype=float32)

    Reference: Karpathy et al., "CS231n: Convolutional neural networks for visual recognition", notes on learning
    (ratio of weights to updates).
    """
    size, change = norms(params), norms(updates)
    if size.keys() != change.keys():
        odd = sorted(size.keys() ^ change.keys())
        raise ValueError(
            f"update_ratios: `params` and `updates` must have the same layers; got {', '.join(odd)} in only one of "
            "them. Pass both as the optimizer sees them."
        )
    return {
        name: jnp.where(size[name] > 0, change[name] / jnp.where(size[name] > 0, size[name], 1), 0) for name in size
    }


def _leaves(tree: Any) -> Iterator[tuple[str, str, jax.Array]]:
    """(layer, name, array) of every array."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        words = [jax.tree_util.keystr((key,), simple=True) for key in path]
        while len(words) > 1 and words[-1] in _BOXES:
            words.pop()
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            yield "/".join(words[:-1] or words), words[-1] if words else "", jnp.asarray(leaf)
