"""Whitening: the features of a group made uncorrelated, not only of unit variance."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import rules
from jaxnorm.arguments import Axes, AxisLike, AxisName, Call, IndexGroups, check_averaging, wide
from jaxnorm.collectives import total
from jaxnorm.rules.averaging import averaging, averaging_rates

METHODS = ("zca", "newton", "cholesky")


class WhiteningStats(NamedTuple):
    """Running mean and covariance: the state of `whiten`.

    Args:
      mean: [*features], at least float32.
      cov: [groups, size, size], the covariance within each group of features.
      count: [] float32, the number of updates.
    """

    mean: jax.Array
    cov: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def init(cls, features: int, *, num_groups: int | None = None, group_size: int | None = None) -> "WhiteningStats":
        """Mean 0, covariance the identity, no update; without groups all features are one.

        >>> WhiteningStats.init(6, group_size=3).cov.shape
        (2, 3, 3)
        """
        call = Call("WhiteningStats.init", jnp.zeros(features))
        groups = _groups(call, num_groups, group_size, features, -1)
        eye = jnp.eye(features // groups, dtype=jnp.float32)
        return cls(jnp.zeros(features, jnp.float32), jnp.tile(eye, (groups, 1, 1)), jnp.zeros((), jnp.float32))


def whiten(
    x: ArrayLike,
    stats: WhiteningStats | None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    method: str = "zca",
    num_groups: int | None = None,
    group_size: int | None = None,
    steps: int = 5,
    momentum: ArrayLike | None = 0.9,
    epsilon: ArrayLike = 1e-5,
    feature_axis: int = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    axis_index_groups: IndexGroups | None = None,
    debias: bool = False,
    scale_offset: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, WhiteningStats | None]:
    """Make the features of each group uncorrelated over batch and space, with unit variance.

        y = (scale_offset + scale) W (x - mean) + bias          W cov W^T = 1          cov = mean(d d^T) + epsilon 1

        method      W                                            d = x - mean
        zca         cov^(-1/2), symmetric: the whitened features closest to the given ones
        newton      the same by `steps` iterations of P <- (3 P - P^3 S) / 2, S = cov / tr(cov), W = P / tr(cov)^(1/2):
                    matrix products alone; small eigenvalues are whitened in part
        cholesky    L^(-1), cov = L L^T: triangular, so feature k depends on features 0 to k

    Args:
      x: any real shape; integers become float32.
      stats: WhiteningStats.init(features, ...) of the same groups. None in training: this batch alone, no state.
      scale, bias: per feature; or with as many dimensions as x and broadcasting to it.
      training: a Python bool; under jit a static argument. Inference uses `stats`.
      method: "zca", "newton" or "cholesky".
      num_groups, group_size: at most one of them; contiguous features are whitened together. None: all features.
      steps: Newton iterations.
      momentum, debias: of the running average, as in `batch_norm`.
      epsilon: added to the diagonal of the covariance.
      feature_axis: the axis of the features.
      where: boolean, broadcasts to x with size 1 along the features: which positions count; others give 0.
      axis_name, axis_index_groups: share the batch's statistics over these devices, by true counts.
      scale_offset: 1.0 for parameters stored around zero.
      dtype: of y; default x's. Everything is computed in at least float32.

    Returns:
      (y, stats), always both. All derivatives are finite, at equal eigenvalues too.

    Raises:
      ValueError: features that do not divide into groups; a mask with features; one position; a state of other groups.
      TypeError: complex x; a traced `training`; a state of another kind.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm as jn
      >>> x = jax.random.normal(jax.random.key(0), (100, 2)) @ jnp.array([[1.0, 2.0], [0.0, 1.0]])
      >>> y, stats = jn.whiten(x, jn.WhiteningStats.init(2), training=True)
      >>> jnp.abs(y.T @ y / 100).round(3)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    Reference: Huang et al. 2018, arXiv:1804.08450, algorithm 1 (zca); Huang et al. 2019, arXiv:1904.03441, algorithm 1
    (newton); Siarohin, Sangineto & Sebe 2019, arXiv:1806.00420, section 3.1 (cholesky).
    """
    call = Call("whiten", x)
    call.training(training)
    call.real_numbers()
    (feature,) = call.one_axis(feature_axis, "feature_axis")
    if method not in METHODS:
        call.fail("`method` must be one of " + ", ".join(METHODS), repr(method), "The default is 'zca'.")
    groups = _groups(call, num_groups, group_size, call.x.shape[feature], feature_axis)
    call.numbers(epsilon, scale_offset)
    check_averaging("whiten", momentum, 0, debias)
    where = call.mask(where)
    if where is not None and where.shape[feature] > 1:
        todo = "Mask positions: give it size 1 along the features."
        call.fail("`where` must be the same for all features", f"where.shape={where.shape}", todo)
    _check_state(call, stats, groups, call.x.shape[feature], training)
    axis_name, device_groups = call.devices(axis_name, axis_index_groups) if training else (None, None)
    area = rules.Area(call.others((feature,)), axis_name, device_groups)
    if training:
        call.several_values(area.axes, axis_name, device_groups)
    y, (mean, cov, count) = _whiten(
        call.x,
        where,
        None if training else stats,
        call.parameter("scale", scale, (feature,), "feature axes"),
        call.parameter("bias", bias, (feature,), "feature axes"),
        epsilon,
        scale_offset,
        feature=feature,
        groups=groups,
        area=area,
        method=method,
        steps=call.positive("steps", steps),
        dtype=call.output_dtype(dtype),
    )
    if stats is None or not training:
        return y, stats
    average = averaging(stats.count, count > 0, averaging_rates(momentum), debias)
    new = WhiteningStats(
        average(stats.mean, mean), average(stats.cov, cov), stats.count + (count > 0).astype(stats.count.dtype)
    )
    return y, lax.stop_gradient(new)


@partial(jax.jit, static_argnames=("feature", "groups", "area", "method", "steps", "dtype"))
def _whiten(
    x, where, stats, scale, bias, epsilon, offset, *, feature: int, groups: int, area: rules.Area, method, steps, dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """y, and mean [features], covariance [groups, size, size] and count [] of the batch (of the state in inference)."""

    @rules.recomputed
    def whitened(x, stats, scale, bias, epsilon, offset):
        width = wide(x.dtype)
        x = x.astype(width)  # wide before it is used twice: its gradients add up wide
        if stats is None:
            measured = rules.measure(x, where, area)
            mean, residual, count = measured.mean, measured.residual, measured.count.reshape(-1)[0]
        else:
            mean = jnp.expand_dims(stats.mean.astype(width), area.axes)
            residual, count = jnp.zeros_like(mean), stats.count
        d = (rules.visible(where, x) - mean) - residual
        d = rules.visible(where, d)
        rows = _rows(d, feature, groups)  # [..., groups, size]
        if stats is None:
            products = _products(rows)
            cov = total(products, area.axis_name, area.groups) / jnp.maximum(count, 1).astype(width)
        else:
            cov = stats.cov.astype(width)
        w = _whitening_matrix(cov, epsilon.astype(width), method, steps)
        y = jnp.einsum("gij,...gj->...gi", w, rows, precision=lax.Precision.HIGHEST)
        y = rules.affine(_from_rows(y, d.shape, feature), scale, bias, offset, where)
        mean = jnp.squeeze(mean + residual, area.axes)
        return rules.visible(where, y).astype(dtype), (mean, cov, count)

    return whitened(x, stats, scale, bias, jnp.asarray(epsilon), jnp.asarray(offset))


def _products(rows: jax.Array) -> jax.Array:
    """The products of each group's features, summed over positions [groups, size, size]."""
    positions, group = tuple(range(rows.ndim - 2)), (rows.ndim - 2,)
    sharding = jax.typeof(rows).sharding
    # Positions that lie on several devices of an explicit mesh: where their sum goes, a product must be told.
    split = any(sharding.spec[a] is not None for a in positions)
    return lax.dot_general(
        rows,
        rows,
        ((positions, positions), (group, group)),
        precision=lax.Precision.HIGHEST,
        out_sharding=NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[group[0]])) if split else None,
    )


def _whitening_matrix(cov: jax.Array, epsilon: jax.Array, method: str, steps: int) -> jax.Array:
    """W [groups, size, size]."""
    eye = 0 * cov + jnp.eye(cov.shape[-1], dtype=cov.dtype)[None]  # batched and placed as cov is
    cov = cov + epsilon * eye
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    if method != "newton":
        root = jnp.linalg.cholesky(cov if method == "cholesky" else rules.matrix_sqrt(cov))
        inverse = lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)
        return inverse if method == "cholesky" else product(inverse.mT, inverse)
    trace = jnp.trace(cov, axis1=-2, axis2=-1)[:, None, None]
    scaled = cov / trace
    # P^3 S = P (P Z) with Z = P S, iterated beside P: the same numbers but for rounding, which P alone amplifies.
    p, z = eye, scaled
    for _ in range(steps):
        factor = 1.5 * eye - 0.5 * product(p, z)
        p, z = product(factor, p), product(z, factor)
    return p / jnp.sqrt(trace)


def _rows(x: jax.Array, feature: int, groups: int) -> jax.Array:
    x = jnp.moveaxis(x, feature, -1)
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _from_rows(rows: jax.Array, shape: Axes, feature: int) -> jax.Array:
    others = [n for axis, n in enumerate(shape) if axis != feature]
    return jnp.moveaxis(rows.reshape(*others, shape[feature]), -1, feature)


def _groups(call: Call, num_groups: int | None, group_size: int | None, features: int, feature_axis: AxisLike) -> int:
    if num_groups is None and group_size is None:
        return 1
    return call.num_groups(num_groups, group_size, features, feature_axis)


def _check_state(call: Call, stats: Any, groups: int, features: int, training: bool) -> None:
    if stats is None and training:
        return
    if not isinstance(stats, WhiteningStats):
        todo = "Start from WhiteningStats.init(features, ...)."
        call.fail("`stats` must be a WhiteningStats", type(stats).__name__, todo, TypeError)
    size = features // groups
    expected = {"mean": (features,), "cov": (groups, size, size), "count": ()}
    got = {name: jnp.shape(value) for name, value in stats._asdict().items()}
    if got != expected:
        todo = f"Use WhiteningStats.init({features}, group_size={size})."
        call.fail(f"`stats` must fit the groups, {expected}", str(got), todo)
