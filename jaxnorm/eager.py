"""A call outside any trace: one compiled program, found by JAX's own dispatch, instead of checks and many operations.

The body of a function is checks of static facts, then computation. Where nothing is traced it runs under `jax.jit`, in
which the checks are made while it is traced: once for equal facts, not in every call. Values are no static facts:
numbers are checked before.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike

F = TypeVar("F", bound=Callable[..., Any])


def one_program(*states: type) -> Callable[[F], F]:
    """For a body whose positional arguments are arrays, numbers or None, and whose keywords are static.

    The first argument is an array; others may be `states`, named tuples of arrays and numbers. Whatever else is given
    goes to the body as it is.
    """

    def decorate(body: F) -> F:
        @functools.wraps(body)
        def call(*arrays: Any, **static: Any) -> Any:
            if _is_array(type(arrays[0])) and all(_is_concrete(a, states) for a in arrays):
                values = tuple(static.values())
                try:
                    program = _program(body, tuple(static), values, _kind(values))
                except TypeError:  # a list, an array, a stranger
                    return body(*arrays, **static)
                return program(*arrays)
            return body(*arrays, **static)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def number(value: ArrayLike) -> ArrayLike:
    """As an argument: a Python int, of any size, as the same number with a point."""
    return float(value) if type(value) is int else value


def unless_zero(offset: ArrayLike | None) -> ArrayLike | None:
    """A Python zero is no argument: nothing is added then."""
    return None if offset is None or (type(offset) in (int, float) and offset == 0) else number(offset)


@functools.lru_cache(maxsize=1024)
def _program(body: Callable[..., Any], names: tuple[str, ...], values: tuple[Any, ...], kinds: Any) -> Any:
    del kinds  # part of the key
    return jax.jit(functools.partial(body, **dict(zip(names, values, strict=True))))


def _kind(value: Any) -> Any:
    """1 and True are equal, but not the same axis. A TypeError for what need not stay as it is."""
    if type(value) is tuple:
        return tuple(map(_kind, value))
    if type(value) in (type(None), bool, int, str) or isinstance(value, (type, np.dtype)):
        return type(value)
    raise TypeError


def _is_concrete(value: Any, states: tuple[type, ...]) -> bool:
    kind = type(value)
    if kind in states:
        return all(_is_concrete(v, ()) for v in value)
    return kind in (type(None), int, float) or _is_array(kind)


@functools.cache
def _is_array(kind: type) -> bool:
    return issubclass(kind, jax.Array)  # which a tracer only seems to be
