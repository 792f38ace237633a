"""Group norm and instance norm: each sample normalized over space, for a group of features or for each alone."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Axes, AxisLike, AxisName, Call, check_numbers, wide
from jaxnorm.eager import number, one_program, unless_zero
from jaxnorm.rules import Area, spread
from jaxnorm.standardize import standardize_area


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    feature_axis: AxisLike = -1,
    axis: AxisLike | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Normalize each sample over space and over a group of neighbouring features.

        y = (scale_offset + scale) (x - mean) / sqrt(var + epsilon) + bias    mean, var over `axis` and the group

    Args:
      x: any shape, floating or complex; integers become float32.
      scale, bias: per feature, of the feature axes' shape; or with as many dimensions as x and broadcasting to it.
      num_groups, group_size: exactly one of them. Features are split into contiguous groups.
      feature_axis: the features, one axis or several (then taken together, in the order of x).
      axis: the space; None is every axis but axis 0 and the features. Give it for unbatched samples or several
        batch axes.
      epsilon: added to the variance inside the root.
      where: boolean, broadcasts to x; False entries do not count, are not read, and give 0.
      axis_name: named axis over whose devices the space is sharded, if it is.
      scale_offset: 1.0 for parameters stored around zero; added in float32.
      dtype: of y; default x's. Computation is in at least float32 with one rounding at the end.
      implementation: which path computes it ("xla", "cpu"); None chooses.

    Returns:
      y, shaped like x.

    Raises:
      ValueError: both or neither of num_groups and group_size; features that do not divide; one value per group; `axis`
        naming a feature axis; shapes that do not fit x.
      TypeError: a mask that is not boolean; complex parameters for real x; an integer `dtype`.

    Differs from torch (epsilon 1e-5, features at axis 1 only) and Flax (32 groups by default, features last only).

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2).round(4)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)

    Reference: Wu & He 2018, arXiv:1803.08494, eq. 7.
    """
    check_numbers("group_norm", epsilon, scale_offset)
    groups = {"num_groups": num_groups, "group_size": group_size, "feature_axis": feature_axis, "axis": axis}
    options = {"axis_name": axis_name, "dtype": dtype, "implementation": implementation}
    return _group_norm(x, where, scale, bias, number(epsilon), unless_zero(scale_offset), **groups, **options)


@one_program()
def _group_norm(
    x,
    where,
    scale,
    bias,
    epsilon,
    offset,
    *,
    num_groups,
    group_size,
    feature_axis,
    axis,
    axis_name,
    dtype,
    implementation,
) -> jax.Array:
    call = Call("group_norm", x)
    features = call.axes(feature_axis, "feature_axis")
    if not features:
        call.fail("`feature_axis` must name an axis", "feature_axis=()", "Groups are groups of features.")
    count = math.prod(call.shape(features))
    groups = call.num_groups(num_groups, group_size, count, feature_axis)
    space = space_axes(call, axis, features)
    call.implementation(implementation)
    if groups == count:
        call.several_values(space, axis_name, None)
    return standardize_groups(
        call.x,
        call.short_parameter("scale", scale, features, "feature axes"),
        call.short_parameter("bias", bias, features, "feature axes"),
        features=features,
        groups=groups,
        area=Area(space, *call.devices(axis_name)),
        epsilon=epsilon,
        where=call.mask(where),
        scale_offset=offset,
        dtype=call.output_dtype(dtype),
        implementation=implementation,
    )


@partial(jax.jit, static_argnames=("features", "groups", "area", "dtype", "implementation"))
def standardize_groups(x, scale, bias, *, features: Axes, groups: int, area: Area, where, **options) -> jax.Array:
    """Group norm for checked arguments; the area's axes are the space, to which the members of a group are added."""
    grouped = Groups(x.shape, features, groups)
    area = area._replace(axes=grouped.axes(area.axes))
    parts = (grouped.split(v) for v in (x, *(spread(p, x.ndim, features) for p in (scale, bias))))
    y, _ = standardize_area(*parts, area=area, where=grouped.split(where), **options)
    return grouped.join(y)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    feature_axis: AxisLike = -1,
    axis: AxisLike | None = None,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Normalize each feature of each sample over space: group norm with one feature per group.

        y = (scale_offset + scale) (x - mean) / sqrt(var + epsilon) + bias        mean, var over `axis`

    Args:
      x: any shape, floating or complex; integers become float32.
      scale, bias: per feature, of the feature axes' shape; or with as many dimensions as x and broadcasting to it.
      feature_axis: the features, one axis or several.
      axis: the space; None is every axis but axis 0 and the features.
      epsilon, where, axis_name, scale_offset, dtype, implementation: as in `group_norm`.

    Returns:
      y, shaped like x.

    Raises:
      ValueError: one value per feature and sample; `axis` naming a feature axis; shapes that do not fit x.
      TypeError: as `group_norm`.

    Differs from torch (epsilon 1e-5; may keep running statistics: use `batch_norm` on one sample for that).

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> jn.instance_norm(jnp.array([[[1.0], [5.0], [9.0]]]))[0, :, 0].round(4)
      Array([-1.2247,  0.    ,  1.2247], dtype=float32)

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022, eq. 2.
    """
    check_numbers("instance_norm", epsilon, scale_offset)
    options = {"axis_name": axis_name, "dtype": dtype, "implementation": implementation}
    numbers = number(epsilon), unless_zero(scale_offset)
    return _instance_norm(x, where, scale, bias, *numbers, feature_axis=feature_axis, axis=axis, **options)


@one_program()
def _instance_norm(
    x, where, scale, bias, epsilon, offset, *, feature_axis, axis, axis_name, dtype, implementation
) -> jax.Array:
    call = Call("instance_norm", x)
    features = call.axes(feature_axis, "feature_axis")
    space = space_axes(call, axis, features)
    call.implementation(implementation)
    call.several_values(space, axis_name, None)
    y, _ = standardize_area(
        call.x,
        call.short_parameter("scale", scale, features, "feature axes"),
        call.short_parameter("bias", bias, features, "feature axes"),
        features=features,
        area=Area(space, *call.devices(axis_name)),
        epsilon=epsilon,
        where=call.mask(where),
        scale_offset=offset,
        dtype=call.output_dtype(dtype),
        implementation=implementation,
    )
    return y


def space_axes(call: Call, axis: AxisLike | None, features: Axes) -> Axes:
    if axis is None:
        return tuple(a for a in call.others(features) if a != 0)
    space = call.axes(axis)
    if set(space) & set(features):
        got = f"axis={axis}, feature_axis={features}, x.shape={call.x.shape}"
        call.fail("`axis` must not name a feature axis", got, "Name the space only; groups already reduce features.")
    return space


class Groups:
    """Features, moved side by side if they are not, seen as two axes: (group, member)."""

    def __init__(self, shape: tuple[int, ...], features: Axes, groups: int):
        self.others = tuple(a for a in range(len(shape)) if a not in features)
        self.first = sum(a < features[0] for a in self.others)
        self.order = (*self.others[: self.first], *features, *self.others[self.first :])
        self.features = tuple(shape[a] for a in features)
        self.groups = groups

    def axes(self, space: Axes) -> Axes:
        places = map(self.others.index, space)
        return tuple(sorted((self.first + 1, *(p if p < self.first else p + 2 for p in places))))

    def split(self, v: jax.Array | None) -> jax.Array | None:
        """v, broadcastable to x, as it broadcasts to the grouped x."""
        if v is None:
            return None
        v = v.transpose(self.order)
        first, last = self.first, self.first + len(self.features)
        before, features, after = v.shape[:first], v.shape[first:last], v.shape[last:]
        if math.prod(features) == 1:
            return v.reshape(*before, 1, 1, *after)
        if features != self.features:
            # Its gradient sums what is repeated here: in full precision.
            v = v if v.dtype == jnp.bool_ else v.astype(wide(v.dtype))
            v = jnp.broadcast_to(v, (*before, *self.features, *after))
        return v.reshape(*before, self.groups, math.prod(self.features) // self.groups, *after)

    def join(self, y: jax.Array) -> jax.Array:
        y = y.reshape(*y.shape[: self.first], *self.features, *y.shape[self.first + 2 :])
        return y.transpose(tuple(map(self.order.index, range(len(self.order)))))
