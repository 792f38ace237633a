"""The fused norm as primitives: forward, its linear tangent, and the transpose of that, which is backward.

    standardize(x, ...) -> y, ...        move(kept, tangents) -> dy, ...        pull(kept, cotangents) -> dx, ...

What JAX does with them: the tangent of `standardize` is `move`, which is linear in the tangents; transposing it gives
`pull`, a program of its own that a kernel can serve; tangents of both are those of their jnp formulas, so that any
higher order is ordinary JAX code. Which tangents move and which cotangents are wanted is static: a gradient of x alone
never sums one for scale. `vmap` adds an axis in front, which changes nothing but the numbers of the axes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.interpreters import ad, batching
from jax.interpreters import partial_eval as pe

from jaxnorm.arguments import wide
from jaxnorm.rules import composed, formulas, lowering, native
from jaxnorm.rules.formulas import Inputs, Kept, Norm, Tangents, Want, forward, move, pull, spread, statistics_move
from jaxnorm.rules.primitive import Given, bind, define, fill, fold, foldable, grouped, jvp_of, mapped, program


def standardize(norm: Norm, inputs: Inputs) -> list[jax.Array]:
    """y; x + stream if there is one; mean, residual and var if `norm.statistics`."""
    lowering.know_devices()
    if not any(isinstance(a, Tracer) for a in inputs):
        given = tuple(a is not None for a in inputs)
        return program(standardize_p, norm=norm, given=given)(*(a for a in inputs if a is not None))
    return bind(standardize_p, _on_the_same_devices(inputs), norm=norm)


def measure(x: jax.Array, axes, center: bool, implementation: str | None) -> list[jax.Array]:
    """mean, residual and var of each set."""
    lowering.know_devices()
    norm = Norm(axes, (), center, x.dtype, True, False, implementation)
    return bind(measure_p, (x,), norm=norm)


def _on_the_same_devices(inputs: Inputs) -> Inputs:
    """Under `shard_map` a parameter that is the same on all devices meets an x that is not: its gradient is summed."""
    varying = [jax.typeof(a).mat.varying if a is not None else frozenset() for a in inputs]
    axes = frozenset().union(*varying)

    def varied(a, own) -> Any:
        return a if a is None or own == axes else lax.pcast(a, tuple(axes - own), to="varying")

    return Inputs(*map(varied, inputs, varying))


# -- forward -----------------------------------------------------------------------------------------------------------


def _forward_names(*, norm: Norm, **_) -> list[str]:
    return ["y", *(["h"] if norm.stream else []), *(("mean", "residual", "var") if norm.statistics else ())]


standardize_p, _forward = define("standardize", forward, native.forward, _forward_names)


def _composition(*flat, norm: Norm, given: Given) -> list[jax.Array]:
    """The same by the composition, whose derivatives do as well where a batch of parameters meets one x."""
    x, stream, scale, bias, epsilon, offset = grouped("standardize", given, flat)[0]
    h = x if stream is None else x + stream
    scale, bias = (spread(p, x.ndim, norm.features) for p in (scale, bias))
    y, stats = composed.standardize(h, None, scale, bias, epsilon, offset, norm.area, norm.dtype)
    return [y, *([] if stream is None else [h]), *(stats[:3] if norm.statistics else ())]


@standardize_p.def_abstract_eval
def _(*flat, norm: Norm, given: Given):
    x = flat[0]
    return [_y(norm, x), *([_like(x)] if norm.stream else []), *([_statistic(norm, x)] * 3 if norm.statistics else ())]


def _like(x, **changes):
    return x.update(weak_type=False, **changes)


def _y(norm: Norm, x):
    return _like(x, dtype=norm.dtype)


def _statistic(norm: Norm, x):
    shape = tuple(1 if a in norm.axes else n for a, n in enumerate(x.shape))
    spec = x.sharding.spec
    kept = (None if a in norm.axes else s for a, s in enumerate(spec))
    return _like(
        x, shape=shape, dtype=wide(x.dtype), sharding=x.sharding.update(spec=spec.update(partitions=tuple(kept)))
    )


def _still(value) -> ad.Zero:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _standardize_jvp(primals, tangents, *, norm: Norm, given: Given):
    out = standardize_p.bind(*primals, norm=norm, given=given)
    x, _, scale, _, epsilon, offset = fill(given, primals)
    dx, dstream, *rest = (None if type(t) is ad.Zero else t for t in fill(given, tangents))
    if dstream is not None:
        dx = dstream if dx is None else ad.add_jaxvals(dx, dstream)
    kept = Kept(out[1] if norm.stream else x, scale, epsilon, offset, *(out[-3:] if norm.statistics else [None] * 3))
    dout = bind(move_p, (*kept, dx, *rest), norm=norm)
    if dx is None:
        return out, [*dout, *(_still(o) for o in out[1:])]
    if norm.statistics:
        dout.insert(-1, _still(out[-2]))  # the residual is what rounding left: it does not move
    return out, dout


ad.primitive_jvps[standardize_p] = _standardize_jvp


def _standardize_batched(args, dims, **static):
    if foldable(standardize_p, dims, static["given"]):
        return fold(standardize_p, args, dims, **static)
    return mapped(_composition, args, dims, **static)


batching.primitive_batchers[standardize_p] = _standardize_batched

# -- statistics alone --------------------------------------------------------------------------------------------------


def _measure_names(**_) -> list[str]:
    return ["mean", "residual", "var"]


measure_p, _measure = define("measure", formulas.measure, native.measure, _measure_names)


@measure_p.def_abstract_eval
def _(x, *, norm: Norm, given: Given):
    return [_statistic(norm, x)] * 3


def _measure_jvp(primals, tangents, *, norm: Norm, given: Given):
    out = measure_p.bind(*primals, norm=norm, given=given)
    dmean, dvar = jax.checkpoint(partial(statistics_move, norm))(*primals, *out, *tangents)
    return out, [dmean, _still(out[1]), dvar]


ad.primitive_jvps[measure_p] = _measure_jvp


def _measure_batched(args, dims, **static):
    return fold(measure_p, args, dims, **static)


batching.primitive_batchers[measure_p] = _measure_batched

# -- tangent -----------------------------------------------------------------------------------------------------------

move_p, _move = define("move", move)


@move_p.def_abstract_eval
def _(*flat, norm: Norm, given: Given):
    x, (_, tangents) = flat[0], grouped("move", given, flat)
    if tangents.x is None:
        return [_y(norm, x)]
    return [_y(norm, x), *([_like(x)] if norm.stream else []), *([_statistic(norm, x)] * 2 if norm.statistics else ())]


def _move_transposed(cotangents, *flat, norm: Norm, given: Given):
    kept, tangents = grouped("move", given, flat)
    want = Want(*(t.aval if ad.is_undefined_primal(t) else None for t in tangents))
    cts = [None if type(c) is ad.Zero else c for c in cotangents]
    y, *rest = cts
    h = rest.pop(0) if norm.stream and rest else None
    mean, var = rest if rest else (None, None)
    if all(c is None for c in cts):
        return [None] * len(flat)
    found = iter(bind(pull_p, (*kept, y, h, mean, var), norm=norm, want=want))
    pulled = [None if w is None else next(found) for w in want]
    return [p for p, g in zip([*[None] * len(kept), *pulled], given, strict=True) if g]


ad.primitive_transposes[move_p] = _move_transposed
ad.primitive_jvps[move_p] = jvp_of(_move)


def _move_batched(args, dims, **static):
    if foldable(move_p, dims, static["given"]):
        return fold(move_p, args, dims, **static)
    return mapped(_move, args, dims, **static)


batching.primitive_batchers[move_p] = _move_batched

# -- backward ----------------------------------------------------------------------------------------------------------


def _pull_names(*, want, **_) -> list[str]:
    return [n for n, w in zip(Tangents._fields, want, strict=True) if w is not None]


pull_p, _pull = define("pull", pull, native.pull, _pull_names)


@pull_p.def_abstract_eval
def _(*flat, norm: Norm, given: Given, want: Want):
    return [w for w in want if w is not None]


ad.primitive_jvps[pull_p] = jvp_of(_pull)


def _pull_batched(args, dims, *, want, **static):
    """The gradient of x folds the batch in; those of parameters, one for each of the batch, are left to the formula."""
    if not foldable(pull_p, dims, static["given"]) or any(w is not None for w in want[1:]):
        return mapped(_pull, args, dims, want=want, **static)
    x = jnp.moveaxis(args[0], dims[0], 0)
    return fold(pull_p, (x, *args[1:]), (0, *dims[1:]), want=want._replace(x=_like(jax.typeof(x))), **static)


batching.primitive_batchers[pull_p] = _pull_batched


def _pull_without_unused(used, *live_and_eqn):  # since jax 0.12 told of the operands too
    """A gradient that nothing reads is not computed."""
    eqn = live_and_eqn[-1]
    if not any(used):
        return [False] * len(eqn.invars), None
    reads = iter(used)
    want = Want(*(w if w is not None and next(reads) else None for w in eqn.params["want"]))
    outvars = [v for v, u in zip(eqn.outvars, used, strict=True) if u]
    return [True] * len(eqn.invars), eqn.replace(outvars=outvars, params=eqn.params | {"want": want})


pe.dce_rules[pull_p] = _pull_without_unused
