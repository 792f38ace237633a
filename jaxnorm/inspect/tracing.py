"""A function as a list of equations, run again while someone watches.

This is how layers are seen without changing any code. The function is traced once. Its equations are then run in
order, by whatever transforms surround them (jit, grad, vmap), and a watcher is shown each with what went in and out.
Where equations stand inside others and a layer is among them:

- nested jit: they are run in place;
- scan: they are run by a scan, and what is found comes out with the steps in front;
- remat and functions with derivative rules of their own: the outer equation is run as it is, so that derivatives stay
  what they were, and a copy is run for the watcher (under jit, XLA merges the two).

What stands inside while, cond, shard_map or a kernel is not seen.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal


class Traced(NamedTuple):
    """A function of particular arguments as equations, its arrays, and the way back to what it returns."""

    closed: ClosedJaxpr
    arrays: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]


def trace(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Traced:
    """Trace with every array as an input; whatever else is among the arguments (flags, None, names) is a constant."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    dynamic = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    outputs: Any = None

    def on_arrays(arrays: list[Any]) -> list[jax.Array]:
        nonlocal outputs
        given = iter(arrays)
        args, kwargs = structure.unflatten(
            next(given) if array else leaf for array, leaf in zip(dynamic, leaves, strict=True)
        )
        out, out_structure = jax.tree.flatten(function(*args, **kwargs))
        is_array = [isinstance(leaf, jax.Array) for leaf in out]
        outputs = out_structure, is_array, [None if array else leaf for array, leaf in zip(is_array, out, strict=True)]
        return [leaf for array, leaf in zip(is_array, out, strict=True) if array]

    arrays = [leaf for array, leaf in zip(dynamic, leaves, strict=True) if array]
    closed = jax.make_jaxpr(on_arrays)(arrays)
    out_structure, is_array, rest = outputs

    def rebuild(values: Sequence[Any]) -> Any:
        given = iter(values)
        return out_structure.unflatten(
            next(given) if array else leaf for array, leaf in zip(is_array, rest, strict=True)
        )

    return Traced(closed, arrays, rebuild)


class Watcher:
    """Sees equations and keeps what it finds, in order, as [name, value]; a value is any tree of arrays."""

    def __init__(self):
        self.found: list[list[Any]] = []

    def is_layer(self, equation: JaxprEqn) -> bool:
        """Whether it is worth looking inside an equation that contains this one."""
        raise NotImplementedError

    def enter(self, equation: JaxprEqn, scope: str) -> tuple[str, Any]:
        """Called before an equation is run; returns the scope of those inside it, and what `see` shall be told."""
        return scope, None

    def see(self, equation: JaxprEqn, noted: Any, inputs: list[Any], outputs: list[Any]) -> None:
        """Called after an equation was run."""
        raise NotImplementedError

    def branch(self) -> "Watcher":
        """A watcher of equations that are traced apart; `join` then takes its place."""
        return type(self)()

    def join(self, branch: "Watcher") -> None:
        self.found += branch.found


def run(traced: Traced, watcher: Watcher) -> Any:
    """What the function returns; the watcher keeps the rest."""
    return traced.rebuild(_run(traced.closed, traced.arrays, watcher, ""))


def _run(closed: ClosedJaxpr, inputs: Sequence[Any], watcher: Watcher, scope: str) -> list[Any]:
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, inputs, strict=True))
    read = lambda variable: variable.val if isinstance(variable, Literal) else values[variable]
    for equation in closed.jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        inside, noted = watcher.enter(equation, scope)
        outputs = _step(equation, given, watcher, inside)
        values.update(zip(equation.outvars, outputs, strict=True))
        watcher.see(equation, noted, given, outputs)
    return [read(variable) for variable in closed.jaxpr.outvars]


def _step(equation: JaxprEqn, inputs: list[Any], watcher: Watcher, scope: str) -> list[Any]:
    body, kind = body_of(equation), equation.primitive.name
    if body is None or not _holds_layer(body, watcher):
        return _bind(equation, inputs)
    if kind in _JIT:
        return _run(body, inputs, watcher, scope)
    if kind == "scan":
        return _scan(equation, body, inputs, watcher, scope)
    _run(body, inputs, watcher, scope)
    return _bind(equation, inputs)


def _bind(equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _scan(equation: JaxprEqn, body: ClosedJaxpr, inputs: list[Any], watcher: Watcher, scope: str) -> list[Any]:
    # What is carried keeps its dimensions; what is scanned over, or stacked, has one more outside than inside.
    stacked = [
        _ndim(outside) > _ndim(inside) for outside, inside in zip(equation.invars, body.jaxpr.invars, strict=True)
    ]
    carries = sum(_ndim(a) == _ndim(b) for a, b in zip(equation.outvars, body.jaxpr.outvars, strict=True))
    consts = len(inputs) - sum(stacked) - carries
    fixed, carry, xs = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
    branch = watcher.branch()

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], Any]:
        nonlocal branch
        branch = watcher.branch()  # afresh: scan may trace its body more than once
        outputs = _run(body, [*fixed, *carry, *xs], branch, scope)
        return outputs[:carries], (outputs[carries:], [value for _, value in branch.found])

    options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, values) = lax.scan(step, carry, xs, **options)
    branch.found = [[name, value] for (name, _), value in zip(branch.found, values, strict=True)]
    watcher.join(branch)
    return [*carry, *ys]


def _ndim(variable: Any) -> int:
    return len(variable.aval.shape)


_JIT = ("jit", "pjit")
_OPEN = (*_JIT, "scan", "remat", "checkpoint", "closed_call", "core_call", "custom_")


def body_of(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The equations inside one that takes the same inputs as they do."""
    if not equation.primitive.name.startswith(_OPEN):
        return None
    body = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    if body is not None and not hasattr(body, "consts"):  # an open one, as in remat before jax 0.12
        body = ClosedJaxpr(body, ())
    return body if body is not None and len(body.jaxpr.invars) == len(equation.invars) else None


def _holds_layer(body: ClosedJaxpr, watcher: Watcher) -> bool:
    return any(
        watcher.is_layer(equation) or ((inner := body_of(equation)) is not None and _holds_layer(inner, watcher))
        for equation in body.jaxpr.eqns
    )
