"""A weight is what is normalized: by its length, its moments, or its largest singular value. Parameters go in, and are
never overwritten."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm.arguments import Axes, AxisLike, Call, wide
from jaxnorm.rules import Area
from jaxnorm.standardize import standardize_area


def weight_norm(
    v: ArrayLike, g: ArrayLike | None = None, *, axis: AxisLike | None, epsilon: ArrayLike = 1e-12
) -> jax.Array:
    """A weight as a direction times a length.

        w = g v / sqrt(sum(v^2) + epsilon)        sum over `axis`

    Args:
      v: the direction, any shape.
      g: the length, of the kept axes' shape, or with as many dimensions as v and broadcasting to it; None is 1.
      axis: what is summed, as in jnp: the weight's fan-in; None is all.
      epsilon: added to the squared norm, so that a zero direction has a finite gradient.

    Returns:
      w, shaped and typed like v; computed in at least float32.

    Raises:
      ValueError: an axis outside v; a g of another shape; a negative epsilon.
      TypeError: a complex g for real v.

    With g = sqrt(sum(v^2)) it starts as the identity, as torch's does; Flax starts at g = 1.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0]), axis=0)
      Array([[6.],
             [8.]], dtype=float32)

    Reference: Salimans & Kingma 2016, arXiv:1602.07868, eq. 2.
    """
    call = Call("weight_norm", v)
    axes = call.axes(axis)
    call.numbers(epsilon)
    g = call.parameter("g", g, call.others(axes), "kept axes")
    x = call.x.astype(wide(call.x.dtype))
    w = x * lax.rsqrt(_squared_length(x, axes) + epsilon).astype(x.dtype)
    return (w if g is None else w * g.astype(w.dtype)).astype(call.x.dtype)


def _squared_length(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.sum(jnp.real(x * jnp.conj(x)), axes, keepdims=True)


def initial_length(v: jax.Array, axes: Axes, epsilon: ArrayLike) -> jax.Array:
    """The g, of the kept axes' shape, with which weight norm gives back v."""
    return jnp.squeeze(jnp.sqrt(_squared_length(v.astype(wide(v.dtype)), axes) + epsilon), axes)


def weight_standardize(
    w: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: AxisLike | None,
    epsilon: ArrayLike = 1e-6,
    scaled: bool = False,
) -> jax.Array:
    """A weight with mean 0 and variance 1 over its fan-in; scaled, one that keeps the variance of what it multiplies.

        w = gain c (w - mean) / sqrt(var + epsilon)        mean, var over `axis`        c = 1; scaled: 1 / sqrt(fan-in)

    Args:
      w: a weight, any shape.
      gain: of the kept axes' shape, or with as many dimensions as w and broadcasting to it, or one number (for scaled
        weights before a ReLU, 1.7139588594436646); None is 1.
      axis: what is summed, as in jnp: the weight's fan-in, for a Flax kernel all but the last; None is all.
      epsilon: added to the variance inside the root.
      scaled: divide by the root of the fan-in too.

    Returns:
      w, shaped and typed like w; computed in at least float32. Reverse mode keeps w and per-output statistics.

    Raises:
      ValueError: an axis outside w; one weight in the fan-in; a gain of another shape; a negative epsilon.
      TypeError: a complex gain for real w.

    Differs from the authors' code of the scaled form, which bounds fan-in x variance from below by 1e-4 instead.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.weight_standardize(jnp.array([[1.0], [5.0], [9.0]]), axis=0)[:, 0].round(4)
      Array([-1.2247,  0.    ,  1.2247], dtype=float32)

    Reference: Qiao et al. 2019, arXiv:1903.10520, eq. 5; Brock et al. 2021, arXiv:2101.08692, eq. 5 (scaled).
    """
    call = Call("weight_standardize", w)
    axes = call.axes(axis)
    call.numbers(epsilon)
    call.several_values(axes, None, None)
    factor = call.number_or_parameter("gain", gain, call.others(axes), "kept axes")
    if scaled:
        fan_in = math.prod(call.shape(axes)) ** -0.5
        factor = jnp.full((1,) * call.x.ndim, fan_in) if factor is None else factor.astype(wide(factor.dtype)) * fan_in
    options = {"epsilon": epsilon, "where": None, "scale_offset": 0.0, "dtype": call.x.dtype}
    return standardize_area(call.x, factor, None, area=Area(axes), **options)[0]


class SpectralState(NamedTuple):
    """What power iteration remembers of one weight, seen as a matrix [-1, features].

    Args:
      u: [features], at least float32, the right singular vector so far.
      sigma: [], the largest singular value as last estimated.
    """

    u: jax.Array
    sigma: jax.Array

    @classmethod
    def init(cls, key: jax.Array, features: int) -> "SpectralState":
        """A random direction, from which iteration starts.

        >>> SpectralState.init(jax.random.key(0), 3).u.shape
        (3,)
        """
        return cls(jax.random.normal(key, (features,), jnp.float32), jnp.ones((), jnp.float32))


def spectral_norm(
    w: ArrayLike, state: SpectralState, *, update: bool, n_steps: int = 1, epsilon: ArrayLike = 1e-12
) -> tuple[jax.Array, SpectralState]:
    """Divide a weight by its largest singular value, estimated by power iteration.

        W = w as [-1, features]       each step: v = n(W u), u = n(W^T v)       sigma = v^T W u      w / sigma

    with n(x) = x / sqrt(sum(x^2) + epsilon). Without a step v = n(W u), so that sigma is the length of W u. No gradient
    flows through u and v, all of it through sigma.

    Args:
      w: a weight whose last axis is the features; any number of axes.
      state: SpectralState of that many features.
      update: a Python bool; False (inference) neither iterates nor changes the state.
      n_steps: iterations when updating.
      epsilon: inside the roots above.

    Returns:
      (w, state): w like w in shape and dtype, computed in at least float32; a zero weight stays zero.

    Raises:
      ValueError: a state of other features; n_steps below 1; a negative epsilon.
      TypeError: an `update` that is traced; complex w.

    Differs from Flax, which iterates in inference too, and from torch, whose features are the first axis.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm as jn
      >>> w = jnp.diag(jnp.array([1.0, 4.0]))
      >>> state = jn.SpectralState.init(jax.random.key(0), 2)
      >>> w_bar, state = jn.spectral_norm(w, state, update=True, n_steps=20)
      >>> state.sigma.round(3), jnp.diag(w_bar).round(3)
      (Array(4., dtype=float32), Array([0.25, 1.  ], dtype=float32))

    Reference: Miyato et al. 2018, arXiv:1802.05957, algorithm 1.
    """
    call = Call("spectral_norm", w)
    _check_spectral(call, state, update)
    steps = call.positive("n_steps", n_steps)
    call.numbers(epsilon)
    matrix = call.x.astype(wide(call.x.dtype)).reshape(-1, call.x.shape[-1])
    fixed, u = lax.stop_gradient((matrix, state.u.astype(matrix.dtype)))

    def unit(x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.sum(jnp.square(x)) + epsilon).astype(x.dtype)

    v = unit(fixed @ u)
    for step in range(steps if update else 0):
        v = v if step == 0 else unit(fixed @ u)
        u = unit(v @ fixed)
    sigma = v @ matrix @ u
    normal = matrix / jnp.where(sigma != 0, sigma, 1)
    if update:
        state = SpectralState(u.astype(state.u.dtype), lax.stop_gradient(sigma).astype(state.sigma.dtype))
    return normal.reshape(call.x.shape).astype(call.x.dtype), state


def _check_spectral(call: Call, state: Any, update: Any) -> None:
    if jnp.iscomplexobj(call.x) or call.x.ndim == 0:
        todo = "Normalize its real and imaginary parts, or reshape it."
        got = f"{call.x.dtype} of shape {call.x.shape}"
        call.fail("`w` must be real, with a feature axis", got, todo, TypeError)
    if not isinstance(update, bool):
        call.fail("`update` must be a Python bool", repr(update), "Under jax.jit mark it static.", TypeError)
    if jnp.shape(state.u) != call.x.shape[-1:]:
        got = f"state.u.shape={jnp.shape(state.u)}, w.shape={call.x.shape}"
        call.fail("`state` must have w's features", got, f"Use SpectralState.init(key, {call.x.shape[-1]}).")
