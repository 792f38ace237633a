"""Adaptive norms: what is put back comes from somewhere else. With computed scale and bias every norm here is adaptive
(pass them with as many dimensions as x, or use `modulate`); this one takes them from another image."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, Call
from jaxnorm.moments import measure_area
from jaxnorm.norms.group import space_axes
from jaxnorm.rules import Area, recomputed
from jaxnorm.standardize import standardize_area


def adaptive_instance_norm(
    content: ArrayLike,
    style: ArrayLike,
    *,
    feature_axis: AxisLike = -1,
    axis: AxisLike | None = None,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    style_where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Give each feature of the content the mean and deviation that it has in the style.

        y = sqrt(var(style) + epsilon) (content - mean(content)) / sqrt(var(content) + epsilon) + mean(style)

    each over space, for every sample and feature.

    Args:
      content: any shape, floating or complex; integers become float32.
      style: as many dimensions; samples and features like the content's, or one for all; its space may differ.
      feature_axis: the features, one axis or several.
      axis: the space, of both; None is every axis but axis 0 and the features.
      epsilon: added to both variances inside the roots.
      where, style_where: boolean, broadcast to content and style; False entries do not count and are not read; in the
        content they give 0.
      dtype: of y; default the content's. Computed in at least float32.

    Returns:
      y, shaped like the content.

    Raises:
      ValueError: a style that does not fit; one value of space in either.
      TypeError: masks that are not boolean; complex style for a real content.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> content, style = jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[[10.0], [30.0]]])
      >>> jn.adaptive_instance_norm(content, style, epsilon=0.0)[0, :, 0].round(1)
      Array([ 7.8, 20. , 32.2], dtype=float32)

    Reference: Huang & Belongie 2017, arXiv:1703.06868, eq. 8.
    """
    call, styled = Call("adaptive_instance_norm", content), Call("adaptive_instance_norm", style)
    features = call.axes(feature_axis, "feature_axis")
    space = space_axes(call, axis, features)
    call.numbers(epsilon)
    shapes = call.x.shape, styled.x.shape
    kept = call.others(space)
    if len(set(map(len, shapes))) > 1 or any(shapes[1][a] not in (1, shapes[0][a]) for a in kept):
        todo = "Samples and features must be the content's, or 1; only the space may differ."
        call.fail("`style` must fit the content", f"style.shape={shapes[1]}, content.shape={shapes[0]}", todo)
    if jnp.iscomplexobj(styled.x) and not jnp.iscomplexobj(call.x):
        got = f"style of {styled.x.dtype}, content of {call.x.dtype}"
        call.fail("`style` must be real where the content is", got, "Make both complex.", TypeError)
    call.several_values(space, None, None)
    styled.several_values(space, None, None)
    masks = call.mask(where), styled.mask(style_where)
    return _adapt(call.x, styled.x, *masks, epsilon, area=Area(space), dtype=call.output_dtype(dtype))


@partial(jax.jit, static_argnames=("area", "dtype"))
def _adapt(content, style, where, style_where, epsilon, *, area: Area, dtype):
    @recomputed
    def adapted(content, style, epsilon):
        m = measure_area(style, style_where, area=area)
        mean, var = (jnp.expand_dims(a, area.axes) for a in (m.mean, m.var))
        scale = jnp.sqrt(var + epsilon.astype(var.dtype))
        options = {"area": area, "epsilon": epsilon, "where": where, "scale_offset": 0.0, "dtype": dtype}
        return standardize_area(content, scale, mean, **options)[0]

    return adapted(content, style, jnp.asarray(epsilon))


def parts_for(function: str, x: jax.Array, modulation: jax.Array, count: int, feature: int) -> list[jax.Array]:
    """So many parameters out of one [*leading axes of x, count * features], each with as many dimensions as x."""
    ndim = jnp.ndim(x)
    if modulation.ndim > ndim:
        todo = "A condition has leading axes of x, and one of its own."
        got = f"a condition of {modulation.ndim} axes for x.shape={jnp.shape(x)}"
        raise ValueError(f"{function}: the condition must not have more axes than x; got {got}. {todo}")
    full = modulation.reshape(*modulation.shape[:-1], *(1,) * (ndim - modulation.ndim), modulation.shape[-1])
    return [jnp.moveaxis(part, -1, feature) for part in jnp.split(full, count, -1)]
