"""Responses: a number divided by what its neighbours, its map or its group respond, batch-free."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Axes, AxisLike, Call, check_number, real, wide
from jaxnorm.norms.group import space_axes
from jaxnorm.rules import Area, affine, recomputed, square, visible, width_of
from jaxnorm.standardize import standardize_area


def global_response_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    feature_axis: int = -1,
    axis: AxisLike | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Let features compete by how strongly each responds over space, beside the identity.

        G = ||x||_2 over `axis`        N = G / (mean of G over features + epsilon)        y = scale (x N) + bias + x

    Args:
      x: any shape, floating or complex; integers become float32.
      scale, bias: per feature; or with as many dimensions as x and broadcasting to it. None is 1, and 0; the paper's
        start at 0, so that y = x.
      feature_axis: the features that compete.
      axis: the space; None is every axis but axis 0 and the features.
      epsilon: added to the mean response.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0. Features without a valid
        value in a sample do not count in its mean.
      dtype: of y; default x's.

    Returns:
      y, shaped like x.

    Raises:
      ValueError, TypeError: shapes and dtypes that do not fit, as in `group_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.global_response_norm(jnp.array([[[3.0, 0.0], [4.0, 5.0]]]), epsilon=0.0)  # both respond by 5: N = 1
      Array([[[ 6.,  0.],
              [ 8., 10.]]], dtype=float32)

    Reference: Woo et al. 2023, arXiv:2301.00808, section 3.3 and algorithm 1.
    """
    call = Call("global_response_norm", x)
    features = call.axes(feature_axis, "feature_axis")
    space = space_axes(call, axis, features)
    call.numbers(epsilon)
    scale = call.parameter("scale", scale, features, "feature axes")
    bias = call.parameter("bias", bias, features, "feature axes")
    options = {"features": features, "space": space, "dtype": call.output_dtype(dtype)}
    return _global_response(call.x, call.mask(where), scale, bias, epsilon, **options)


@partial(jax.jit, static_argnames=("features", "space", "dtype"))
def _global_response(x, where, scale, bias, epsilon, *, features: Axes, space: Axes, dtype):
    @recomputed
    def normalized(x, scale, bias, epsilon):
        valid = visible(where, x).astype(wide(x.dtype))
        energy = jnp.sum(square(valid), space, keepdims=True)
        response = jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1)), 0)
        if where is None:
            mean = jnp.mean(response, features, keepdims=True)
        else:
            seen = jnp.any(where, space, keepdims=True)
            seen = jnp.broadcast_to(seen, jnp.broadcast_shapes(seen.shape, response.shape))
            count = jnp.sum(seen, features, dtype=response.dtype, keepdims=True)
            mean = jnp.sum(response, features, keepdims=True) / jnp.maximum(count, 1)
        divisor = mean + epsilon
        share = jnp.where(divisor > 0, response / jnp.where(divisor > 0, divisor, 1), 0)  # nothing responds: epsilon 0
        y = affine(valid * share.astype(valid.dtype), scale, bias, jnp.zeros((), share.dtype), where)
        return visible(where, y + valid.astype(y.dtype)).astype(dtype)

    return normalized(x, scale, bias, jnp.asarray(epsilon, real(wide(x.dtype))))


def filter_response_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    *,
    feature_axis: AxisLike = -1,
    axis: AxisLike | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divide each feature of each sample by its root mean square over space; then a learned threshold, not a ReLU.

        y = max(z, threshold)        z = (scale_offset + scale) x / sqrt(mean(x^2) + epsilon) + bias

    Args:
      x: any real shape; integers become float32.
      scale, bias, threshold: per feature; or with as many dimensions as x and broadcasting to it. Without a
        threshold y = z.
      feature_axis: the features.
      axis: the space; None is every axis but axis 0 and the features. One value is allowed: epsilon, which the paper
        then learns, makes it a soft sign.
      epsilon: added to the mean square inside the root; pass |epsilon| if you learn it.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0.
      scale_offset: 1.0 for parameters stored around zero.
      dtype: of y; default x's.

    Returns:
      y, shaped like x.

    Raises:
      ValueError, TypeError: as `group_norm`; complex x.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> x = jnp.array([[[3.0], [4.0], [0.0], [0.0]]])
      >>> jn.filter_response_norm(x, threshold=jnp.array([0.5]), epsilon=0.0)[0, :, 0]
      Array([1.2, 1.6, 0.5, 0.5], dtype=float32)

    Reference: Singh & Krishnan 2020, arXiv:1911.09737, eqs. 1 to 4.
    """
    call = Call("filter_response_norm", x)
    call.real_numbers()
    features = call.axes(feature_axis, "feature_axis")
    space = space_axes(call, axis, features)
    call.numbers(epsilon, scale_offset)
    parameters = {"scale": scale, "bias": bias, "threshold": threshold}
    return _filter_response(
        call.x,
        call.mask(where),
        *(call.parameter(name, p, features, "feature axes") for name, p in parameters.items()),
        epsilon,
        scale_offset,
        area=Area(space, center=False),
        dtype=call.output_dtype(dtype),
    )


@partial(jax.jit, static_argnames=("area", "dtype"))
def _filter_response(x, where, scale, bias, threshold, epsilon, offset, *, area: Area, dtype):
    def normalized(x, scale, bias, epsilon, offset, dtype):
        options = {"area": area, "epsilon": epsilon, "where": where, "scale_offset": offset, "dtype": dtype}
        return standardize_area(x, scale, bias, **options)[0]

    if threshold is None:
        return normalized(x, scale, bias, epsilon, offset, dtype)

    @recomputed
    def bounded(x, scale, bias, threshold, epsilon, offset):  # rounded once, after the threshold
        z = normalized(x, scale, bias, epsilon, offset, width_of(x, scale, bias))
        tau = threshold.astype(z.dtype)
        larger = jnp.where((z < tau) | jnp.isnan(tau), tau, z)  # jax 0.12 gathers beside the gradient of jnp.maximum
        return visible(where, larger).astype(dtype)

    return bounded(x, scale, bias, threshold, jnp.asarray(epsilon), jnp.asarray(offset))


def local_response_norm(
    x: ArrayLike,
    *,
    size: int,
    alpha: ArrayLike = 1e-4,
    beta: ArrayLike = 0.75,
    k: ArrayLike = 1.0,
    feature_axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Divide each number by a power of the mean square of its neighbours along the features.

        y_c = x_c / (k + alpha / size sum x_j^2)^beta        j from c - size // 2 to c + (size - 1) // 2, zeros outside

    Args:
      x: any shape, floating or complex; integers become float32.
      size: how many neighbours, itself included.
      alpha, beta, k: as above (torch's meaning: alpha is divided by size; in the paper and in TensorFlow it is not).
      feature_axis: the axis along which neighbours lie.
      where: boolean, broadcasts to x; False entries are not read, count as zero, and give 0.

    Returns:
      y, shaped and typed like x; computed in at least float32.

    Raises:
      ValueError: a size below 1; a negative alpha or k; an axis outside x.
      TypeError: a size that is no Python int.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.local_response_norm(jnp.array([1.0, 2.0, 3.0]), size=1, alpha=1.0, beta=0.5)  # x / sqrt(1 + x^2)
      Array([0.70710677, 0.8944272 , 0.94868326], dtype=float32)

    Reference: Krizhevsky, Sutskever & Hinton 2012, section 3.3; the scaling of alpha as in torch.nn.LocalResponseNorm.
    """
    call = Call("local_response_norm", x)
    (feature,) = call.one_axis(feature_axis, "feature_axis")
    size = call.positive("size", size)
    for name, value in (("alpha", alpha), ("k", k)):
        check_number("local_response_norm", name, value, "must not be negative", "The divisor is k plus squares.")
    check_number("local_response_norm", "beta", beta, None, "It is the divisor's exponent.")
    return _local_response(call.x, call.mask(where), alpha, beta, k, size=size, feature=feature)


@partial(jax.jit, static_argnames=("size", "feature"))
def _local_response(x, where, alpha, beta, k, *, size: int, feature: int):
    window, padding = [1] * x.ndim, [(0, 0)] * x.ndim
    window[feature], padding[feature] = size, (size // 2, (size - 1) // 2)

    @recomputed
    def normalized(x, alpha, beta, k):
        valid = visible(where, x).astype(wide(x.dtype))
        neighbours = lax.reduce_window(square(valid), 0.0, lax.add, window, (1,) * x.ndim, padding)
        return (valid * ((k + alpha / size * neighbours) ** -beta).astype(valid.dtype)).astype(x.dtype)

    return normalized(x, *(jnp.asarray(v, real(wide(x.dtype))) for v in (alpha, beta, k)))
