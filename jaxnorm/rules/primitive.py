"""What the primitives of a fused norm have in common: running, lowering, tangents of higher order, and `vmap`.

Operands are flat; `given` says which fields of the formulas' arguments they are.
"""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from jaxnorm.rules import lowering
from jaxnorm.rules.formulas import Cotangents, Inputs, Kept, Measured, Norm, Tangents, spread

Given = tuple[bool, ...]
NUMBERS = {"epsilon", "offset"}
PARAMETERS = {"scale", "bias"}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "measure": (Measured,),
    "standardize": (Inputs,),
    "move": (Kept, Tangents),
    "pull": (Kept, Cotangents),
}
NAMES = {name: [f for kind in kinds for f in kind._fields] for name, kinds in ARGUMENTS.items()}


@functools.cache
def program(primitive: Primitive, **static):
    """The primitive compiled for given shapes, as XLA's dispatch likes it: a call outside jit that costs little."""

    def run(*flat):
        return primitive.bind(*flat, **static)

    run.__name__ = primitive.name
    return jax.jit(run)


def bind(primitive: Primitive, arguments, **static) -> list[Any]:
    given = tuple(a is not None for a in arguments)
    return primitive.bind(*(a for a in arguments if a is not None), given=given, **static)


def fill(given: Given, flat) -> list[Any]:
    operands: Any = iter(flat)
    return [next(operands) if g else None for g in given]


def grouped(name: str, given: Given, flat) -> list[Any]:
    """The flat operands as the formulas take them."""
    arguments, groups = fill(given, flat), []
    for kind in ARGUMENTS[name]:
        size = len(kind._fields)
        groups.append(kind(*arguments[:size]))
        arguments = arguments[size:]
    return groups


def define(name: str, formula, here: Any = None, names_out: Any = None) -> tuple[Primitive, Any]:
    """A primitive that computes the formula, on a CPU `here`, where it can; and the formula of its flat operands."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    def flat_formula(*flat, norm: Norm, given: Given, **static) -> list[jax.Array]:
        return formula(norm, *grouped(name, given, flat), **static)

    @primitive.def_impl
    def _(*flat, **static):
        with jax.disable_jit(False):
            return program(primitive, **static)(*flat)

    if here is None:
        mlir.register_lowering(primitive, mlir.lower_fun(flat_formula, multiple_results=True))
    else:

        def flat_here(*flat, norm: Norm, given: Given, places=None, **static) -> list[jax.Array]:
            return here(norm, *grouped(name, given, flat), **static, places=places)

        lowering.register(primitive, flat_formula, flat_here, partial(_names, name), names_out)
    return primitive, flat_formula


def _names(primitive: str, *, given: Given, **_) -> list[str]:
    return [n for n, g in zip(NAMES[primitive], given, strict=True) if g]


def jvp_of(formula):
    """Tangents of the tangent and of the backward: of the formula in jnp, which keeps its arguments alone."""

    def rule(primals, tangents, **static):
        moves = [type(t) is not ad.Zero for t in tangents]

        @jax.checkpoint
        def f(*moving):
            moving = iter(moving)
            return formula(*(next(moving) if m else p for p, m in zip(primals, moves, strict=True)), **static)

        given = [[a for a, m in zip(arrays, moves, strict=True) if m] for arrays in (primals, tangents)]
        return jax.jvp(f, given[0], given[1])

    return rule


def _in_front(a, dim, name: str, norm: Norm, x):
    """An operand as it stands beside an x that got one more axis in front."""
    if name in NUMBERS:
        return a
    if name not in PARAMETERS:
        return jnp.broadcast_to(a, (x.shape[0], *a.shape)) if dim is None else jnp.moveaxis(a, dim, 0)
    if dim is None:
        return a if a.ndim == len(norm.features) else a[None]
    return jax.vmap(lambda p: spread(p, x.ndim - 1, norm.features), dim)(a)


def fold(primitive, args, dims, norm: Norm, given: Given, **static):
    """The batch is one more axis in front of x."""
    x = jnp.moveaxis(args[0], dims[0], 0)
    names = _names(primitive.name, given=given)
    moved = [_in_front(a, d, n, norm, x) for a, d, n in zip(args[1:], dims[1:], names[1:], strict=True)]
    out = primitive.bind(x, *moved, norm=norm.batched(), given=given, **static)
    return out, [0] * len(out)


def mapped(formula, args, dims, **static):
    """The batch by `vmap` of jnp code: where x has none, nothing of it is computed many times over."""
    out = jax.vmap(partial(formula, **static), tuple(dims))(*args)
    return out, [0] * len(out)


def foldable(primitive, dims, given: Given) -> bool:
    names = _names(primitive.name, given=given)
    return dims[0] is not None and all(d is None for n, d in zip(names, dims, strict=True) if n in NUMBERS)
