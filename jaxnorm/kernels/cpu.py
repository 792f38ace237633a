"""The CPU kernels as functions of arrays: one foreign call each; no derivatives, batching or partitioning in here.

x is canonical, [outer, space, kept, inner]: one set of statistics for each (outer, kept), over space and inner.

    row norms        [rows, 1, 1, features]
    batch norm       [1, n, features, 1]        ghost batches: [ghosts, n / ghosts, features, 1]
    group norm       [samples, space, groups, members]
                     features first: [samples, 1, groups, members * space], repeat=space

Parameters are flat, [kept * inner / repeat], in x's computing dtype (float32, for float64 x float64), as epsilon is.
`factor` is scale + scale_offset. What is None is absent; what is not wanted is not computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.arguments import wide

DTYPES = {np.dtype(d) for d in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)}


class Measured(NamedTuple):
    """Per-set statistics, [outer, kept]; the mean is mean + residual."""

    mean: jax.Array
    residual: jax.Array
    var: jax.Array


class Output(NamedTuple):
    """What forward gives: y and sum are shaped like x; sum is x + residual, statistics are its."""

    y: jax.Array | None
    sum: jax.Array | None
    statistics: Measured | None


class Gradients(NamedTuple):
    """What backward gives, each None if not wanted: dx like x, the others like factor."""

    dx: jax.Array | None
    dfactor: jax.Array | None
    dbias: jax.Array | None


def hindrance(x: jax.Array | jax.ShapeDtypeStruct, *, center: bool) -> str | None:
    """Why the kernels do not serve a canonical x, or None if they do."""
    if x.dtype not in DTYPES:
        return f"x is of {x.dtype}, they compute {', '.join(sorted(map(str, DTYPES)))}"
    if not center and x.shape[1] != 1:
        return "they compute uncentred statistics of adjacent numbers only (RMS norm over the last axes)"
    return None


def forward(
    x: jax.Array,
    factor: jax.Array | None,
    bias: jax.Array | None,
    epsilon: jax.Array,
    *,
    center: bool = True,
    repeat: int = 1,
    residual: jax.Array | None = None,
    statistics: bool = False,
) -> Output:
    """y = factor (x - mean) / sqrt(var + epsilon) + bias; of x + residual, if there is one (adjacent sets only)."""
    outer, space, kept, inner = x.shape
    sets = _statistics_of(x, wanted=statistics or space != 1)
    if space != 1:
        columns, shape = _columns(x)
        y, *measured = _call("columns_forward", [_like(columns), *sets], columns, factor, bias, epsilon, shape=shape)
        return Output(y.reshape(x.shape), None, Measured(*measured) if statistics else None)
    rows = (outer * kept, inner)
    results = [_like(x, rows), _like(x, rows, residual is not None), *sets]
    residual = None if residual is None else residual.reshape(rows)
    y, sum, *measured = _call(
        "rows_forward",
        results,
        x.reshape(rows),
        residual,
        factor,
        bias,
        epsilon,
        center=center,
        kept=kept,
        repeat=repeat,
    )
    sum = None if residual is None else sum.reshape(x.shape)
    return Output(y.reshape(x.shape), sum, Measured(*measured) if statistics else None)


def measure(x: jax.Array) -> Measured:
    """The statistics alone."""
    outer, space, kept, inner = x.shape
    nothing, epsilon, sets = _like(x, wanted=False), jnp.zeros((), wide(x.dtype)), _statistics_of(x)
    if space != 1:
        columns, shape = _columns(x)
        return Measured(*_call("columns_forward", [nothing, *sets], columns, None, None, epsilon, shape=shape)[1:])
    rows = x.reshape(outer * kept, inner)
    options = {"center": True, "kept": kept, "repeat": 1}
    return Measured(*_call("rows_forward", [nothing, nothing, *sets], rows, None, None, None, epsilon, **options)[2:])


def backward(
    x: jax.Array,
    statistics: Measured | None,
    factor: jax.Array | None,
    epsilon: jax.Array,
    dy: jax.Array,
    dsum: jax.Array | None = None,
    *,
    center: bool = True,
    repeat: int = 1,
    want: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """The transpose of forward's tangent. Adjacent sets are measured again (statistics None); dsum is added to dx."""
    outer, space, kept, inner = x.shape
    parameter = jax.ShapeDtypeStruct((kept * inner // repeat,), wide(x.dtype))
    wanted = [_like(parameter, wanted=w) for w in want[1:]]
    if space != 1:
        assert statistics is not None
        columns, shape = _columns(x)
        arrays = columns, *statistics, factor, epsilon, dy.reshape(columns.shape)
        dx, *rest = _call("columns_backward", [_like(columns, wanted=want[0]), *wanted], *arrays, shape=shape)
    else:
        rows = (outer * kept, inner)
        dsum = None if dsum is None else dsum.reshape(rows)
        arrays = x.reshape(rows), factor, epsilon, dy.reshape(rows), dsum
        options = {"center": center, "kept": kept, "repeat": repeat}
        dx, *rest = _call("rows_backward", [_like(x, rows, want[0]), *wanted], *arrays, **options)
    dx = dx.reshape(x.shape) if want[0] else dx
    return Gradients(*(array if w else None for array, w in zip((dx, *rest), want, strict=True)))


def average(
    mean: jax.Array,
    var: jax.Array,
    count: jax.Array,
    batch_mean: jax.Array,
    residual: jax.Array,
    batch_var: jax.Array,
    n: jax.Array,
    past: jax.Array,
    new: jax.Array,
    *,
    ddof: int,
) -> Sequence[jax.Array]:
    """past mean + new (batch_mean + residual); past var + new batch_var n / (n - ddof); count + 1: where n > ddof.

    All are float32; past and new are numbers, the others have one shape; n may be one number for all.
    """
    arrays = var, count, batch_mean, residual, batch_var, n, past, new
    return _call("average", [_like(a) for a in (mean, var, count)], mean, *arrays, ddof=ddof)


def _columns(x: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """x as a matrix, and its shape: XLA copies an array with dimensions of 1 where it should see it as another."""
    outer, space, kept, inner = x.shape
    return x.reshape(outer * space, kept * inner), np.array(x.shape, np.int64)


def _like(x, shape: tuple[int, ...] | None = None, wanted: bool = True) -> jax.ShapeDtypeStruct:
    """An array that is not wanted has no elements, and no more dimensions than one."""
    return jax.ShapeDtypeStruct((x.shape if shape is None else shape) if wanted else (0,), x.dtype)


def _statistics_of(x: jax.Array, wanted: bool = True) -> list[jax.ShapeDtypeStruct]:
    outer, _, kept, _ = x.shape
    return [_like(jax.ShapeDtypeStruct((outer, kept), wide(x.dtype)), wanted=wanted)] * 3


def _call(target: str, results: list[jax.ShapeDtypeStruct], x: jax.Array, *arrays: jax.Array | None, **options):
    absent = jnp.zeros((0,), x.dtype)
    call = jax.ffi.ffi_call(f"jaxnorm_{target}", results)
    options = {name: np.int64(value) if type(value) is int else value for name, value in options.items()}
    return call(x, *(absent if a is None else a for a in arrays), **options)
