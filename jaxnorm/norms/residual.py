"""Residual-stream forms: add, then normalize, and give both back. The seam where a fused kernel saves a pass."""

from typing import Any

import jax
from jax.typing import ArrayLike

from jaxnorm.norms.layer import normalize_features


def add_rms_norm(
    x: ArrayLike, residual: ArrayLike, scale: ArrayLike | None = None, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """Add a branch to the residual stream and normalize the sum: the seam between two blocks of a pre-norm network.

        h = x + residual        y = rms_norm(h, scale)

    Args:
      x: what a block computed; any shape, floating or complex.
      residual: the stream, of the same shape and dtype.
      scale: as in `rms_norm`.
      options: the keywords of `rms_norm`, with its defaults.

    Returns:
      (y, h): the input of the next block, and the stream, both shaped like x. h has x's dtype and is rounded to it
      before it is normalized, so that y is a function of what is kept. Where a mask (`where`) is False both are 0.

    Raises:
      ValueError: shapes that differ; and as `rms_norm`.
      TypeError: dtypes that differ; and as `rms_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> y, h = jn.add_rms_norm(jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]), epsilon=0.0)
      >>> h, jnp.round(12.5 * y**2)
      (Array([3., 4.], dtype=float32), Array([ 9., 16.], dtype=float32))

    Reference: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; pre-norm: Xiong et al. 2020, arXiv:2002.04745, table 1.
    """
    return normalize_features("add_rms_norm", x, scale, None, center=False, adds=True, residual=residual, **options)


def add_layer_norm(
    x: ArrayLike, residual: ArrayLike, scale: ArrayLike | None = None, bias: ArrayLike | None = None, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """Add a branch to the residual stream and normalize the sum.

        h = x + residual        y = layer_norm(h, scale, bias)

    Args:
      x, residual: as in `add_rms_norm`.
      scale, bias: as in `layer_norm`.
      options: the keywords of `layer_norm`, with its defaults.

    Returns:
      (y, h), as `add_rms_norm`.

    Raises:
      As `add_rms_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> y, h = jn.add_layer_norm(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 3.0, 6.0]))
      >>> h, y.round(4)
      (Array([1., 5., 9.], dtype=float32), Array([-1.2247,  0.    ,  1.2247], dtype=float32))

    Reference: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 3; pre-norm: as `add_rms_norm`.
    """
    return normalize_features("add_layer_norm", x, scale, bias, center=True, adds=True, residual=residual, **options)
