"""What becomes of a module's axes, mask and parameters on their way into a pure function."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import ArrayLike

from jaxnorm.standardize import standardize

Axes = int | Sequence[int]
Initializer = Any


def canonical(ndim: int, axes: Axes) -> tuple[int, ...]:
    axes = tuple(axes) if isinstance(axes, Iterable) else (axes,)
    if any(not -ndim <= a < ndim for a in axes):
        todo = "Axes count from 0, or back from -1."
        raise ValueError(f"jaxnorm.linen: axes must lie within the {ndim} dimensions; got {axes}. {todo}")
    return tuple(sorted({a % ndim for a in axes}))


def mask_of(mask: ArrayLike | None) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask, bool)


def parameters(module: Any, x: jax.Array, axes: tuple[int, ...], use_bias: bool, leading: tuple[int, ...] = ()):
    """Scale and bias on these axes, with as many dimensions as x, and the output dtype by Flax's rule."""
    scale = learned(module, "scale", x, axes, leading) if module.use_scale else None
    bias = learned(module, "bias", x, axes, leading) if use_bias else None
    return scale, bias, canonicalize_dtype(x, scale, bias, dtype=module.dtype)


def learned(module: Any, name: str, x: jax.Array, axes: tuple[int, ...], leading: tuple[int, ...] = ()) -> jax.Array:
    """One parameter on these axes of x, initialized by the field `<name>_init`, with as many dimensions as x."""
    shape = tuple(x.shape[a] for a in axes)
    full = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    value = module.param(name, getattr(module, f"{name}_init"), (*leading, *shape), module.param_dtype)
    return value.reshape((*leading, *full))


def groups_of(module: Any):
    return None if module.axis_name is None else module.axis_index_groups


def standardized(module: Any, x, feature_axes: Axes, axis: Axes, mask, use_bias: bool, center: bool = True):
    scale, bias, dtype = parameters(module, x, canonical(x.ndim, feature_axes), use_bias)
    y, _ = standardize(
        x,
        scale,
        bias,
        axis=canonical(x.ndim, axis),
        epsilon=module.epsilon,
        where=mask_of(mask),
        axis_name=module.axis_name,
        axis_index_groups=groups_of(module),
        center=center,
        scale_offset=module.scale_offset,
        dtype=dtype,
    )
    return y
