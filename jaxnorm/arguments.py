"""What callers may pass: every argument rule of the public functions, each with its one error message.

A message says *function: the rule; what came; what to do*. All rules look at static facts (types, shapes, Python
numbers), so they hold at trace time and cost nothing at run time; the modules below this one trust their input.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NoReturn, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Axes = tuple[int, ...]
AxisLike = int | Sequence[int]
AxisName = Any  # a name, or a tuple of names, as in `jax.lax.psum`
IndexGroups = Sequence[Sequence[int]]


# What a call asks of dtypes is looked up, not worked out: a call outside jit takes microseconds.


@functools.cache
def wide(dtype: DTypeLike) -> np.dtype:
    """The dtype to compute in: at least float32; float64 and complex stay as they are."""
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


@functools.cache
def real(dtype: DTypeLike) -> np.dtype:
    """The real dtype of the same precision: variances and counts of complex numbers are real."""
    return jnp.finfo(dtype).dtype


@functools.cache
def is_complex(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


@functools.cache
def is_inexact(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def dtype_of(value: ArrayLike) -> np.dtype:
    return value.dtype if isinstance(value, jax.Array) else jnp.result_type(value)


def _is_array(value: object) -> TypeGuard[jax.Array]:
    """Already what the functions compute with."""
    return isinstance(value, jax.Array) and is_inexact(value.dtype)


class Call:
    """One call of a public function: its name and its input, for the checks and for the messages.

    `x` is the input as an array of floating (or complex) dtype; booleans and integers become float32.
    """

    def __init__(self, function: str, x: ArrayLike, name: str = "x"):
        self.function = function
        self.x: jax.Array
        if _is_array(x):
            self.x = x
            return
        if isinstance(x, (list, tuple)):
            try:
                x = np.asarray(x)
            except ValueError:
                self.fail(f"`{name}` must be an array", f"a ragged {type(x).__name__}", "Pad it and pass where=.")
        if not hasattr(x, "dtype") and not isinstance(x, (bool, int, float, complex)):
            self.fail(f"`{name}` must be an array", f"{type(x).__name__}", "Pass a JAX or NumPy array.", TypeError)
        try:
            self.x = jnp.asarray(x)
        except TypeError:
            self.fail(f"`{name}` must hold numbers", f"dtype {np.asarray(x).dtype}", "Convert it first.", TypeError)
        if not jnp.issubdtype(self.x.dtype, jnp.inexact):
            if not (jnp.issubdtype(self.x.dtype, jnp.integer) or self.x.dtype == jnp.bool_):
                self.fail(f"`{name}` must hold numbers", f"dtype {self.x.dtype}", "Convert it first.", TypeError)
            self.x = self.x.astype(jnp.float32)

    def fail(self, rule: str, got: str, todo: str, kind: type[Exception] = ValueError) -> NoReturn:
        raise kind(f"{self.function}: {rule}; got {got}. {todo}")

    # -- which numbers ------------------------------------------------------------------------------------------------

    def axes(self, axis: AxisLike | None, name: str = "axis") -> Axes:
        """Axes as sorted non-negative numbers; None is all of them."""
        ndim = self.x.ndim
        if axis is None:
            return tuple(range(ndim))
        try:
            given = (operator.index(axis),) if not isinstance(axis, Sequence) else tuple(map(operator.index, axis))
        except TypeError:
            self.fail(f"`{name}` must be an int or a tuple of ints", repr(axis), "Name axes by number.", TypeError)
        for a in given:
            if not -ndim <= a < ndim:
                todo = f"Valid: {-ndim} to {ndim - 1}." if ndim else "A scalar has no axes; pass axis=None."
                self.fail(f"`{name}` must lie within the dimensions of x", f"{name}={axis}, {self._x}", todo)
        axes = tuple(sorted(a % ndim for a in given))
        if len(set(axes)) < len(axes):
            self.fail(f"`{name}` must not name an axis twice", f"{name}={axis}, {self._x}", "Name each axis once.")
        return axes

    def others(self, axes: Axes) -> Axes:
        return tuple(a for a in range(self.x.ndim) if a not in axes)

    def shape(self, axes: Axes) -> tuple[int, ...]:
        return tuple(self.x.shape[a] for a in axes)

    def mask(self, where: ArrayLike | None) -> jax.Array | None:
        """A boolean mask with as many dimensions as x, each of size 1 or that of x."""
        if where is None:
            return None
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_:
            todo = "True means count this; write where=mask != 0 for a mask of numbers."
            self.fail("`where` must be boolean", f"dtype {where.dtype}", todo, TypeError)
        if not _broadcasts(where.shape, self.x.shape):
            todo = "Add axes of size 1, for example where[..., None], until shapes match from the right."
            self.fail("`where` must broadcast to x", f"where.shape={where.shape}, {self._x}", todo)
        return where.reshape((1,) * (self.x.ndim - where.ndim) + where.shape)

    def parameter(self, name: str, value: ArrayLike | None, axes: Axes, which: str) -> jax.Array | None:
        """A scale, bias, mean or variance as an array that broadcasts to x with all its dimensions."""
        value = self.short_parameter(name, value, axes, which)
        if value is None or value.ndim == self.x.ndim:
            return value
        return jnp.expand_dims(value, self.others(axes))

    def short_parameter(self, name: str, value: ArrayLike | None, axes: Axes, which: str) -> jax.Array | None:
        """A parameter of the shape of `axes`, or with all of x's dimensions.

        `axes` are those its shape stands for unless it has as many dimensions as x; `which` is their name in messages.
        """
        if value is None:
            return None
        value = value if _is_array(value) else jnp.asarray(value)
        if is_complex(value.dtype) and name == "var":
            self.fail(
                "`var` must be real", f"var of {value.dtype}", "A variance is the mean of |x - mean|^2.", TypeError
            )
        if is_complex(value.dtype) and not is_complex(self.x.dtype):
            todo = "Make both complex, or take its real part."
            self.fail(
                f"`{name}` must be real where x is", f"{name} of {value.dtype}, x of {self.x.dtype}", todo, TypeError
            )
        if not is_inexact(value.dtype):
            value = value.astype(jnp.float32)
        if value.shape == self.shape(axes):
            return value
        if value.ndim == self.x.ndim and _broadcasts(value.shape, self.x.shape):
            return value
        rule = (
            f"`{name}` must have the shape of the {which}, {self.shape(axes)}, or as many dimensions as x and "
            "broadcast to it"
        )
        self.fail(rule, f"{name}.shape={value.shape}, {self._x}, {which}={axes}", "Reshape it, or check the axes.")

    def number_or_parameter(self, name: str, value: ArrayLike | None, axes: Axes, which: str) -> jax.Array | None:
        """As `parameter`; or one number for all."""
        if value is not None and jnp.ndim(value) == 0:
            value = jnp.reshape(value, (1,) * self.x.ndim)
        return self.parameter(name, value, axes, which)

    def one_axis(self, axis: AxisLike, name: str) -> Axes:
        axes = self.axes(axis, name)
        if len(axes) != 1:
            self.fail(f"`{name}` must be one axis", f"{name}={axis}", "Reshape x so that they are one.")
        return axes

    def real_numbers(self) -> None:
        if is_complex(self.x.dtype):
            todo = "Treat its real and imaginary parts as features."
            self.fail("`x` must be real", f"x of {self.x.dtype}", todo, TypeError)

    def several_values(
        self, axes: Axes, axis_name: AxisName, groups: IndexGroups | None, rows: int | None = None
    ) -> None:
        """Training statistics need more than one value wherever that can be known before running.

        `rows` is how many values of the leading axis share statistics when a ghost batch splits it.
        """
        count = math.prod(self.shape(axes) if rows is None else (rows, *self.shape(axes[1:])))
        if axis_name is not None:
            count = count * (min(map(len, groups)) if groups is not None else jax.lax.axis_size(axis_name))
        if count == 1:
            todo = (
                "One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running "
                "statistics."
            )
            self.fail(
                "every set of numbers that shares statistics needs at least two",
                f"one value per set from {self._x}, reduced axes {axes}",
                todo,
            )

    def num_groups(self, num_groups: int | None, group_size: int | None, features: int, feature_axis: AxisLike) -> int:
        """How many groups; `features` is the size of the feature axes."""
        if (num_groups is None) == (group_size is None):
            got = f"num_groups={num_groups}, group_size={group_size}"
            self.fail("give exactly one of `num_groups` and `group_size`", got, "Leave one of them out.")
        name, value = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
        value = self.positive(name, value)
        if features % value:
            divisors = [d for d in range(1, features + 1) if features % d == 0]
            near = [*[d for d in divisors if d < value][-1:], *[d for d in divisors if d > value][:1]]
            got = f"{name}={value}, features={features} ({self._x}, feature_axis={feature_axis})"
            self.fail(f"`{name}` must divide the features", got, f"Divisors near {value}: {', '.join(map(str, near))}.")
        return value if group_size is None else features // value

    def alike(self, name: str, value: ArrayLike) -> jax.Array:
        """An array that is added to x."""
        other = Call(self.function, value, name).x
        if other.shape != self.x.shape:
            got = f"{self._x}, {name}.shape={other.shape}"
            self.fail(f"`{name}` must have x's shape", got, "Nothing is broadcast: the stream would change its shape.")
        if other.dtype != self.x.dtype:
            got = f"x of {self.x.dtype}, {name} of {other.dtype}"
            todo = "Cast one: which, decides how the stream is rounded."
            self.fail(f"`{name}` must have x's dtype", got, todo, TypeError)
        return other

    # -- numbers and switches -----------------------------------------------------------------------------------------

    def positive(self, name: str, value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            self.fail(
                f"`{name}` must be a Python int",
                f"{name}={value!r}",
                "It decides shapes, so it cannot be traced.",
                TypeError,
            )
        if number < 1:
            self.fail(f"`{name}` must be at least 1", f"{name}={number}", "Pass a positive int.")
        return number

    def numbers(self, epsilon: ArrayLike, scale_offset: ArrayLike = 0.0) -> None:
        check_numbers(self.function, epsilon, scale_offset)

    def training(self, training: Any) -> None:
        if isinstance(training, (bool, np.bool_)):
            return
        got = "a traced value" if isinstance(training, Tracer) else repr(training)
        todo = (
            "Under jax.jit mark it static with static_argnames='training'; to decide at run time call both branches: "
            "jax.lax.cond(flag, lambda: f(training=True), lambda: f(training=False))."
        )
        self.fail("`training` must be a Python bool", got, todo, TypeError)

    def output_dtype(self, dtype: DTypeLike | None) -> np.dtype:
        if dtype is None:
            return self.x.dtype
        dtype = jax.dtypes.canonicalize_dtype(dtype)  # without 64 bits float64 is float32, as everywhere in JAX
        if not jnp.issubdtype(dtype, jnp.inexact):
            self.fail(
                "`dtype` must be floating",
                f"dtype={dtype}",
                "Cast the result yourself if you want integers.",
                TypeError,
            )
        if is_complex(self.x.dtype) and not is_complex(dtype):
            self.fail(
                "`dtype` must be complex where x is",
                f"dtype={dtype}, x of {self.x.dtype}",
                "Take the real part yourself.",
                TypeError,
            )
        return dtype

    def devices(
        self, axis_name: AxisName, groups: IndexGroups | None = None
    ) -> tuple[AxisName, tuple[Axes, ...] | None]:
        """Axis name and groups of devices, as tuples; every device belongs to exactly one group."""
        axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
        if groups is None:
            return axis_name, None
        if axis_name is None:
            self.fail(
                "`axis_index_groups` needs an `axis_name`",
                f"axis_index_groups={groups}",
                "Name the axis whose devices they group.",
            )
        groups = tuple(tuple(operator.index(i) for i in group) for group in groups)
        size = jax.lax.axis_size(axis_name)
        if sorted(i for group in groups for i in group) != list(range(size)):
            todo = f"Axis {axis_name!r} has {size} devices."
            self.fail("`axis_index_groups` must name every device exactly once", f"axis_index_groups={groups}", todo)
        return axis_name, groups

    def implementation(self, implementation: str | None) -> None:
        if implementation not in (None, "xla", "cpu"):
            todo = "Available: 'xla', 'cpu'; None chooses."
            self.fail("`implementation` must name one that exists", f"implementation={implementation!r}", todo)

    @property
    def _x(self) -> str:
        return f"x.shape={self.x.shape}"


def check_number(
    function: str, name: str, value: Any, bounds: str | None, why: str, low: float = 0.0, high: float = math.inf
) -> None:
    """One real number, which may be traced; where its value is known, within bounds."""
    if type(value) in (int, float) and (not bounds or low <= value <= high):
        return
    if not isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) or jnp.issubdtype(
        jnp.result_type(value), jnp.complexfloating
    ):
        raise TypeError(f"{function}: `{name}` must be a real number; got {name}={value!r}. {why}")
    if jnp.ndim(value):
        raise ValueError(f"{function}: `{name}` must be one number; got an array of shape {jnp.shape(value)}. {why}")
    if bounds and not isinstance(value, Tracer) and not low <= float(value) <= high:
        raise ValueError(f"{function}: `{name}` {bounds}; got {name}={value}. {why}")


def check_numbers(function: str, epsilon: ArrayLike, scale_offset: ArrayLike) -> None:
    """The two that every norm has."""
    check_number(function, "epsilon", epsilon, "must not be negative", "It is added to the variance inside the root.")
    check_number(function, "scale_offset", scale_offset, None, "It is the same for every entry of scale.")


def check_averaging(function: str, momentum: Any, ddof: Any, debias: Any) -> None:
    """The options of a running average, as `RunningStats.update` and the norms with a state take them."""
    if momentum is not None:
        why = "It is the weight of the past; torch's momentum is 1 minus it."
        check_number(function, "momentum", momentum, "must be from 0 to 1", why, high=1.0)
    if not isinstance(debias, (bool, np.bool_)):
        raise TypeError(f"{function}: `debias` must be a Python bool; got {debias!r}. It cannot be traced.")
    if debias and (momentum is None or (not isinstance(momentum, Tracer) and float(momentum) == 1)):
        raise ValueError(
            f"{function}: `debias` needs a momentum below 1; got momentum={momentum}. The cumulative average "
            "(momentum=None) has no bias to remove."
        )
    check_ddof(function, ddof)


def check_ddof(function: str, ddof: Any) -> None:
    if isinstance(ddof, Tracer) or not isinstance(ddof, (int, np.integer)):
        raise TypeError(f"{function}: `ddof` must be a Python int; got ddof={ddof!r}. 0 is Flax's, 1 torch's.")
    if ddof < 0:
        raise ValueError(f"{function}: `ddof` must not be negative; got ddof={ddof}. 0 is Flax's, 1 torch's.")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
