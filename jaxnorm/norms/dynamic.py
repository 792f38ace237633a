"""Normalization-free layers: a squashing function in a norm's place. No statistics at all."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Call
from jaxnorm.rules import affine, erf, recomputed, visible, visible_parameter, width_of


def dynamic_tanh(
    x: ArrayLike,
    alpha: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Squash each number, in place of a layer norm.

        y = (scale_offset + scale) tanh(alpha x) + bias

    Args:
      x: any real shape; integers become float32.
      alpha: one learned number (0.5 at first), or of the last axis' shape, or with as many dimensions as x.
      scale, bias: of the last axis' shape, or with as many dimensions as x and broadcasting to it.
      where: boolean, broadcasts to x; False entries are not read and give 0.
      scale_offset: 1.0 for parameters stored around zero.
      dtype: of y; default x's. Computed in at least float32.

    Returns:
      y, shaped like x.

    Raises:
      ValueError: parameters of another shape.
      TypeError: complex x.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.dynamic_tanh(jnp.array([-100.0, 0.0, 1.0]), 0.5).round(4)
      Array([-1.    ,  0.    ,  0.4621], dtype=float32)

    Reference: Zhu et al. 2025, arXiv:2503.10622, eq. 2.
    """
    return _squash("dynamic_tanh", jnp.tanh, x, alpha, None, scale, bias, where, scale_offset, dtype)


def dynamic_erf(
    x: ArrayLike,
    alpha: ArrayLike,
    shift: ArrayLike = 0.0,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Squash each number by the error function, in place of a layer norm.

        y = (scale_offset + scale) erf(alpha x + shift) + bias

    Args:
      x: any real shape; integers become float32.
      alpha, shift: one learned number each (0.5 and 0 at first), or as in `dynamic_tanh`.
      scale, bias, where, scale_offset, dtype: as in `dynamic_tanh`.

    Returns:
      y, shaped like x.

    Raises:
      As `dynamic_tanh`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.dynamic_erf(jnp.array([-100.0, 0.0, 1.0]), 0.5).round(4)
      Array([-1.    ,  0.    ,  0.5205], dtype=float32)

    Reference: Chen et al. 2025, arXiv:2512.10938.
    """
    return _squash("dynamic_erf", erf, x, alpha, shift, scale, bias, where, scale_offset, dtype)


def _squash(
    function: str, squash: Callable[..., jax.Array], x, alpha, shift, scale, bias, where, scale_offset, dtype
) -> jax.Array:
    call = Call(function, x)
    call.real_numbers()
    call.numbers(0.0, scale_offset)
    last = tuple(range(call.x.ndim))[-1:]
    alpha, shift = (call.number_or_parameter(n, v, last, "last axis") for n, v in (("alpha", alpha), ("shift", shift)))
    scale, bias = (call.parameter(n, v, last, "last axis") for n, v in (("scale", scale), ("bias", bias)))
    return _squashed(
        call.x, call.mask(where), alpha, shift, scale, bias, scale_offset, squash=squash, dtype=call.output_dtype(dtype)
    )


@partial(jax.jit, static_argnames=("squash", "dtype"))
def _squashed(x, where, alpha, shift, scale, bias, offset, *, squash: Callable[[jax.Array], jax.Array], dtype):
    width = width_of(x, alpha, shift)

    @recomputed
    def squashed(x, alpha, shift, scale, bias, offset):
        inner = visible_parameter(where, alpha).astype(width) * visible(where, x).astype(width)
        if shift is not None:
            inner = inner + visible_parameter(where, shift).astype(width)
        return visible(where, affine(squash(inner), scale, bias, offset, where)).astype(dtype)

    return squashed(x, alpha, shift, scale, bias, jnp.asarray(offset, width))
