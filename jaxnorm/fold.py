"""After training: a norm that has become a constant affine map, folded into the layer before it or behind it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm.arguments import Call, wide
from jaxnorm.rules import width_of
from jaxnorm.running import RunningStats


def freeze(
    stats: RunningStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 1e-5,
    scale_offset: ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Batch norm in inference as one scale and one bias.

        y = scale' x + bias'      scale' = (scale_offset + scale) / sqrt(var + epsilon)      bias' = bias - mean scale'

    Args:
      stats: RunningStats of the features.
      scale, bias: of the batch norm; None is 1, and 0.
      epsilon, scale_offset: those of the batch norm.

    Returns:
      (scale', bias'), of the state's shape, at least float32.

    Raises:
      ValueError: parameters of another shape than the state's; a negative epsilon.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> from jaxnorm.fold import freeze
      >>> freeze(jn.RunningStats(jnp.array([3.0]), jnp.array([4.0]), jnp.array([1.0])), epsilon=0.0)
      (Array([0.5], dtype=float32), Array([-1.5], dtype=float32))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2, step 11.
    """
    call = Call("freeze", stats.mean)
    call.numbers(epsilon, scale_offset)
    every = tuple(range(call.x.ndim))
    given = {name: call.parameter(name, p, every, "statistics") for name, p in (("scale", scale), ("bias", bias))}
    width = width_of(stats.mean, *given.values())
    inverse = lax.rsqrt(stats.var.astype(width) + jnp.asarray(epsilon, width))
    factor = inverse
    if given["scale"] is not None:
        factor = (jnp.asarray(scale_offset, width) + given["scale"].astype(width)) * inverse
    shift = -stats.mean.astype(width) * factor
    return factor, shift if given["bias"] is None else given["bias"].astype(width) + shift


def fold_batch_norm(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: RunningStats,
    norm_scale: ArrayLike | None = None,
    norm_bias: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 1e-5,
    scale_offset: ArrayLike = 0.0,
    feature_axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """One dense or convolutional layer that computes what it and the batch norm behind it did in inference.

        kernel' = kernel a        bias' = (bias - mean) a + norm_bias

    with a = (scale_offset + norm_scale) / sqrt(var + epsilon).

    Args:
      kernel: of a dense, convolutional, grouped or transposed convolutional layer.
      bias: [features] of that layer; None is 0.
      stats: RunningStats of the batch norm.
      norm_scale, norm_bias, epsilon, scale_offset: those of the batch norm.
      feature_axis: the kernel's axis of output features: the last one in Flax (with `transpose_kernel=True`, -2).

    Returns:
      (kernel', bias'), in the kernel's dtype. Only for a norm right after the layer, without an activation between.

    Raises:
      ValueError: a kernel whose features are not the statistics'; parameters of another shape.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> from jaxnorm.fold import fold_batch_norm
      >>> stats = jn.RunningStats(jnp.array([3.0]), jnp.array([4.0]), jnp.array([1.0]))
      >>> fold_batch_norm(jnp.array([[2.0], [6.0]]), None, stats, epsilon=0.0)
      (Array([[1.],
             [3.]], dtype=float32), Array([-1.5], dtype=float32))

    Reference: Jacob et al. 2018, arXiv:1712.05877, eq. 14.
    """
    call = Call("fold_batch_norm", kernel)
    feature = call.one_axis(feature_axis, "feature_axis")
    if stats.mean.shape != call.shape(feature):
        got = f"stats of shape {stats.mean.shape}, kernel.shape={call.x.shape}, feature_axis={feature_axis}"
        call.fail("the statistics must be those of the kernel's output features", got, "Check feature_axis.")
    scale, shift = freeze(stats, norm_scale, norm_bias, epsilon=epsilon, scale_offset=scale_offset)
    before = call.parameter("bias", bias, feature, "output features")
    if before is not None:
        shift = before.astype(scale.dtype).reshape(-1) * scale + shift
    folded = call.x.astype(jnp.promote_types(call.x.dtype, scale.dtype)) * jnp.expand_dims(scale, call.others(feature))
    return folded.astype(call.x.dtype), shift.astype(call.x.dtype)


def fold_into_next(
    norm_scale: ArrayLike | None,
    norm_bias: ArrayLike | None,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    scale_offset: ArrayLike = 0.0,
    axis: int = -2,
) -> tuple[jax.Array, jax.Array | None]:
    """A norm's scale and bias in the layer that follows it: the norm then needs neither.

        kernel' = (scale_offset + norm_scale) kernel, row by row        bias' = bias + norm_bias kernel

    Args:
      norm_scale, norm_bias: [features] of a layer norm or RMS norm; None is 1, and 0.
      kernel: of the dense layer that reads the norm's output, or of a convolution. With a norm_bias and a kernel wider
        than 1 the convolution must not pad: padded zeros have no bias.
      bias: of that layer; None is 0.
      scale_offset: that of the norm.
      axis: the kernel's axis of input features, in Flax the last but one. The outputs are on the last axis, or, if that
        is the inputs' (-1: a transposed kernel), on the one before it.

    Returns:
      (kernel', bias'), in the kernel's dtype; bias' is None if there was no bias at all.

    Raises:
      ValueError: parameters that do not fit the kernel's input features.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.fold import fold_into_next
      >>> fold_into_next(jnp.array([2.0, 3.0]), jnp.array([1.0, 1.0]), jnp.array([[1.0], [10.0]]))
      (Array([[ 2.],
             [30.]], dtype=float32), Array([11.], dtype=float32))

    Reference: Ashkboos et al. 2024, arXiv:2401.15024, section 3 (a norm's parameters absorbed by its neighbours).
    """
    call = Call("fold_into_next", kernel)
    inputs = call.one_axis(axis, "axis")
    call.numbers(0.0, scale_offset)
    scale = call.parameter("norm_scale", norm_scale, inputs, "input features")
    shift = call.parameter("norm_bias", norm_bias, inputs, "input features")
    wide_kernel = call.x.astype(wide(call.x.dtype))
    folded = wide_kernel
    if scale is not None:
        folded = wide_kernel * (scale.astype(wide_kernel.dtype) + jnp.asarray(scale_offset, wide_kernel.dtype))
    if shift is not None:
        added = jnp.sum(shift.astype(wide_kernel.dtype) * wide_kernel, _not_outputs(call.x.ndim, inputs[0]))
        bias = added if bias is None else jnp.asarray(bias).astype(added.dtype) + added
    return folded.astype(call.x.dtype), None if bias is None else jnp.asarray(bias).astype(call.x.dtype)


def _not_outputs(ndim: int, inputs: int) -> tuple[int, ...]:
    """All axes of a kernel but that of its outputs: the last, or before it where the inputs are last."""
    outputs = ndim - 1 if inputs != ndim - 1 else ndim - 2
    return tuple(a for a in range(ndim) if a != outputs)


def dense_after_rms_norm(
    x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None = None, *, epsilon: ArrayLike = 1e-6
) -> jax.Array:
    """RMS norm and the dense layer behind it, dividing after the product: the two need not wait for each other.

        y = (x kernel) / sqrt(mean(x^2) + epsilon) + bias

    Args:
      x: [..., features], real.
      kernel: [features, outputs], with the norm's scale folded in by `fold_into_next`.
      bias: [outputs].
      epsilon: that of the norm.

    Returns:
      y [..., outputs], of x's dtype: what rms_norm and the layer compute, up to rounding.

    Raises:
      ValueError: a kernel that is not [features, outputs].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.fold import dense_after_rms_norm
      >>> dense_after_rms_norm(jnp.array([[3.0, 4.0, 0.0, 0.0]]), jnp.eye(4), epsilon=0.0)
      Array([[1.2, 1.6, 0. , 0. ]], dtype=float32)

    Reference: Graef et al. 2024, arXiv:2407.09577.
    """
    call = Call("dense_after_rms_norm", x)
    call.real_numbers()
    call.numbers(epsilon)
    kernel = jnp.asarray(kernel)
    if kernel.ndim != 2 or kernel.shape[0] != call.x.shape[-1]:
        got = f"kernel.shape={kernel.shape}, x.shape={call.x.shape}"
        call.fail("`kernel` must be [features, outputs]", got, "Its rows are x's last axis.")
    width = wide(call.x.dtype)
    square = jnp.mean(jnp.square(call.x.astype(width)), -1, keepdims=True)
    product = jnp.matmul(call.x, kernel.astype(call.x.dtype), preferred_element_type=width)
    y = product * lax.rsqrt(square + jnp.asarray(epsilon, width))
    if bias is not None:
        y = y + jnp.asarray(bias).astype(width).reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(call.x.dtype)
