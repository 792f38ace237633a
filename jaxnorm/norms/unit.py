"""Lp normalization: each vector divided by its length."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxnorm.arguments import Axes, AxisLike, Call, check_number, real, wide
from jaxnorm.rules import recomputed, square, visible


def lp_normalize(
    x: ArrayLike,
    *,
    axis: AxisLike | None = -1,
    p: float = 2,
    epsilon: ArrayLike = 1e-12,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Divide each vector by its p-norm.

        y = x / max(||x||_p, epsilon)        ||x||_p = (sum |x|^p)^(1/p) over `axis`

    `g * lp_normalize(x)` with one learned number g is scale norm.

    Args:
      x: any shape, floating or complex; integers become float32.
      axis: what one vector is made of, as in jnp; None is all.
      p: a Python number from 1 on; `float("inf")` is the largest absolute value.
      epsilon: the least number that is divided by.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0.

    Returns:
      y, shaped and typed like x; computed in at least float32, without overflow or underflow of the powers. A zero
      vector stays zero; there the derivative is 1 / epsilon, finite for epsilon > 0.

    Raises:
      ValueError: an axis outside x; p below 1; a mask that does not fit; a negative epsilon.
      TypeError: a p that is traced; a mask that is not boolean.

    Differs from Flax's and Haiku's l2 helpers, which add epsilon under the root.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.lp_normalize(jnp.array([3.0, 4.0])), jn.lp_normalize(jnp.array([1.0, -3.0]), p=1)
      (Array([0.6, 0.8], dtype=float32), Array([ 0.25, -0.75], dtype=float32))

    Reference: Nguyen & Salazar 2019, arXiv:1910.05895, eq. 5 (scale norm, p = 2).
    """
    call = Call("lp_normalize", x)
    axes = call.axes(axis)
    call.numbers(epsilon)
    why = "Below 1 it is no norm, and has no derivative at 0."
    if isinstance(p, Tracer):
        call.fail("`p` must be a Python number", "a traced value", "It decides the formula.", TypeError)
    check_number("lp_normalize", "p", p, "must be at least 1", why, low=1.0)
    return _normalize(call.x, call.mask(where), epsilon, axes=axes, p=float(p))


@partial(jax.jit, static_argnames=("axes", "p"))
def _normalize(x: jax.Array, where: jax.Array | None, epsilon: ArrayLike, *, axes: Axes, p: float) -> jax.Array:
    @recomputed
    def normalized(x, epsilon):
        valid = visible(where, x).astype(wide(x.dtype))
        length = _norm(valid, axes, p)
        return (valid / jnp.maximum(length, epsilon).astype(valid.dtype)).astype(x.dtype)

    return normalized(x, jnp.asarray(epsilon, real(wide(x.dtype))))


def _norm(x: jax.Array, axes: Axes, p: float) -> jax.Array:
    """The p-norm, with derivative 0 where all is zero. Dividing by the largest entry first changes no derivative."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0))
    divisor = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    if p == 2:
        power = square(x / divisor.astype(x.dtype))
    else:
        size = _size(x) / divisor
        if p == jnp.inf:
            return jnp.max(size, axes, keepdims=True, initial=0) * divisor
        power = size if p == 1 else jnp.where(size > 0, jnp.where(size > 0, size, 1) ** p, 0)
    total = jnp.sum(power, axes, keepdims=True)
    root = jnp.where(total > 0, total, 1) ** (1 / p) if p != 2 else jnp.sqrt(jnp.where(total > 0, total, 1))
    return jnp.where(total > 0, root, 0) * divisor


def _size(x: jax.Array) -> jax.Array:
    """|x|, with derivative 0 at 0."""
    if jnp.isrealobj(x):
        return jnp.abs(x)
    squared = square(x)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
