"""A call outside any trace: one compiled program, found by JAX's own dispatch, instead of checks and many operations.

The body of a function is checks of static facts, then computation. Where nothing is traced it runs under `jax.jit`, in
which the checks are made while it is traced: once for equal facts, not in every call. Values are no static facts:
numbers are checked before.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer
from jax.typing import ArrayLike

F = TypeVar("F", bound=Callable[..., Any])


def one_program(body: F) -> F:
    """The body, whose positional arguments are arrays, numbers or None, and whose keywords are static."""

    @functools.wraps(body)
    def call(*arrays: Any, **static: Any) -> Any:
        if all(map(_concrete, arrays)):
            values = tuple(static.values())
            try:
                program = _program(body, tuple(static), values, _kind(values))
            except TypeError:  # not hashable: a list, or an array where none should be
                return body(*arrays, **static)
            return program(*arrays)
        return body(*arrays, **static)

    return call  # pyright: ignore[reportReturnType]


def unless_zero(offset: ArrayLike | None) -> ArrayLike | None:
    """A Python zero is no argument: nothing is added then."""
    return None if type(offset) in (int, float) and offset == 0 else offset


@functools.lru_cache(maxsize=1024)
def _program(body: Callable[..., Any], names: tuple[str, ...], values: tuple[Any, ...], kinds: Any) -> Any:
    del kinds  # 1, True and 1.0 are equal, but not the same axis
    fixed = dict(zip(names, values, strict=True))

    def _run(*arrays: Any) -> Any:
        return body(*arrays, **fixed)

    return jax.jit(_run)


def _kind(value: Any) -> Any:
    return tuple(map(_kind, value)) if type(value) is tuple else type(value)


def _concrete(value: Any) -> bool:
    return all(map(_concrete, value)) if hasattr(value, "_fields") else _concrete_type(type(value))


@functools.cache
def _concrete_type(kind: type) -> bool:
    return kind in (type(None), int, float) or (issubclass(kind, jax.Array) and not issubclass(kind, Tracer))
