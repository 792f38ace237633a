"""The primitives on the CPU: the compiled kernels where they serve.

A kernel sees one form, x[outer, space, kept, inner] (see jaxnorm/kernels/cpu.py), which most norms are by reshaping
alone. Everything else is left to the formulas.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.arguments import Axes, wide
from jaxnorm.kernels import cpu
from jaxnorm.rules import formulas
from jaxnorm.rules.composed import factor_of, width_of
from jaxnorm.rules.formulas import Cotangents, Inputs, Kept, Maybe, Measured, Norm, Places, Want, names_of

Shape = tuple[int, ...]

# Batch norm with features first has sums for each place of an image: of 8 images of 56 x 56 they cost three times what
# XLA takes, of 32 images as much, and below less.
WIDE = 64


class Form(NamedTuple):
    """The canonical shape; how many neighbours share a parameter; the axes of x over which parameters have entries."""

    shape: tuple[int, int, int, int]
    repeat: int
    spans: Axes


def form_of(norm: Norm, shape: Shape, parameters: list[Shape]) -> Form | None:
    """How kernels see an x of this shape with parameters of these shapes (all dimensions), if they can."""
    if not all(isinstance(n, int) and n > 0 for n in shape):
        return None
    varies = {a for a in range(len(shape)) if any(p[a] > 1 for p in parameters)}

    def size(axes) -> int:
        return math.prod(shape[a] for a in axes)

    axes = [a for a, n in enumerate(shape) if n > 1]
    runs = [(shares, list(run)) for shares, run in itertools.groupby(axes, lambda a: a in norm.axes)]
    outer, *runs = [run for _, run in (runs if runs and not runs[0][0] else [(False, []), *runs])]
    if len(runs) == 1:  # the numbers of a set are neighbours
        (inner,) = runs
        first = next((i for i, a in enumerate(outer) if a in varies), len(outer))
        outer, kept = outer[:first], outer[first:]
        own = inner[: max((i + 1 for i, a in enumerate(inner) if a in varies), default=0)]
        if not varies.issuperset(kept):
            return None
        return Form((size(outer), 1, size(kept), size(inner)), size(inner) // size(own), (*kept, *own))
    if len(runs) in (2, 3) and not varies.intersection([*outer, *runs[0]]):
        space, kept, inner = [*runs, []][:3]
        return Form((size(outer), size(space), size(kept), size(inner)), 1, (*kept, *inner))
    return None


def full_shape(p, ndim: int, features: Axes) -> Shape:
    """Of a parameter, with as many dimensions as x."""
    if p.ndim == ndim:
        return p.shape
    sizes = dict(zip(features, p.shape, strict=True))
    return tuple(sizes.get(a, 1) for a in range(ndim))


class Canonical:
    """x, its statistics and parameters, there and back."""

    def __init__(self, norm: Norm, x, form: Form):
        self.norm, self.x, self.form = norm, x, form
        self.adjacent = form.shape[1] == 1
        self.width = wide(x.dtype)
        self.spanned = tuple(n if a in form.spans else 1 for a, n in enumerate(x.shape))
        self.sets = tuple(1 if a in norm.axes else n for a, n in enumerate(x.shape))

    def array(self, v: Maybe) -> jax.Array:
        return v.reshape(self.form.shape)

    def parameter(self, p: jax.Array) -> jax.Array:
        p = p.astype(self.width)
        if p.ndim < self.x.ndim:
            p = jnp.expand_dims(p, tuple(a for a in range(self.x.ndim) if a not in self.norm.features))
        return jnp.broadcast_to(p, self.spanned).reshape(-1)

    def factor(self, scale: jax.Array | None, offset: jax.Array | None) -> jax.Array | None:
        return None if scale is None else self.parameter(factor_of(scale, offset, None, self.width))

    def to_parameter(self, flat: Maybe, like) -> jax.Array:
        """A gradient, summed over the entries that one of the parameter stands for."""
        shape = full_shape(like, self.x.ndim, self.norm.features)
        ones = tuple(a for a, (n, m) in enumerate(zip(shape, self.spanned, strict=True)) if n < m)
        return jnp.sum(flat.reshape(self.spanned), ones).reshape(like.shape)


def canonical(norm: Norm, x, *parameters) -> Canonical | str:
    """x as kernels see it, or why they do not serve; of arrays, or of their types."""
    given = [p for p in parameters if p is not None]
    form = form_of(norm, x.shape, [full_shape(p, x.ndim, norm.features) for p in given])
    if form is None:
        return f"x of shape {x.shape} with statistics over axes {norm.axes} has no form that they know"
    if norm.dtype != x.dtype or width_of(x, *given) != wide(x.dtype):
        return f"they return the dtype of x, {x.dtype}, and compute in {wide(x.dtype)}"
    _, space, _, inner = form.shape
    if norm.implementation is None and space > 1 and inner > WIDE * space:
        return f"sets of {space} x {inner} numbers are faster by the formulas"
    hindrance = cpu.hindrance(jax.ShapeDtypeStruct(form.shape, x.dtype), center=norm.center)
    return hindrance or Canonical(norm, x, form)


def hindrance(norm: Norm, x, *parameters) -> str | None:
    """Why the kernels do not serve, or None if they do; of arrays, or of their types."""
    answer = canonical(norm, x, *parameters)
    return answer if isinstance(answer, str) else None


# Each as in the formulas, which serve where the kernels do not.


def measure(norm: Norm, inputs: Measured, places: Places | None = None) -> list[jax.Array]:
    form = canonical(norm, inputs.x)
    if isinstance(form, str) or not norm.center or names_of(places, norm.axes):
        return formulas.measure(norm, inputs, places)
    return [s.reshape(form.sets) for s in cpu.measure(form.array(inputs.x))]


def forward(norm: Norm, inputs: Inputs, places: Places | None = None) -> list[jax.Array]:
    x, stream, scale, bias, epsilon, offset = inputs
    form = canonical(norm, x, scale, bias)
    if isinstance(form, str) or names_of(places, norm.axes):
        return formulas.forward(norm, inputs, places)
    if stream is not None and not form.adjacent:
        x, stream = x + stream, None
    out: Any = cpu.forward(
        form.array(x),
        form.factor(scale, offset),
        None if bias is None else form.parameter(bias),
        epsilon.astype(form.width),
        center=norm.center,
        repeat=form.form.repeat,
        residual=None if stream is None else form.array(stream),
        statistics=norm.statistics,
    )
    h = [x if out.sum is None else out.sum.reshape(x.shape)] if norm.stream else []
    return [out.y.reshape(x.shape), *h, *(s.reshape(form.sets) for s in out.statistics or ())]


def pull(norm: Norm, kept: Kept, cotangents: Cotangents, want: Want, places: Places | None = None) -> list[jax.Array]:
    x, scale, epsilon, offset, *measured = kept
    dy, dh, dmean, dvar = cotangents
    form = canonical(norm, x, scale, *want[1:3])
    beyond = dy is None or dmean is not None or dvar is not None or want.epsilon is not None
    if isinstance(form, str) or beyond or names_of(places, norm.axes):
        return formulas.pull(norm, kept, cotangents, want, places)
    statistics = None
    if not form.adjacent:
        sets = (form.form.shape[0], form.form.shape[2])
        statistics = (
            cpu.Measured(*(m.reshape(sets) for m in measured)) if norm.statistics else cpu.measure(form.array(x))
        )
    pulled: Any = cpu.backward(
        form.array(x),
        statistics,
        form.factor(scale, offset),
        epsilon.astype(form.width),
        form.array(dy),
        form.array(dh) if form.adjacent and dh is not None else None,
        center=norm.center,
        repeat=form.form.repeat,
        want=(want.x is not None, want.scale is not None or want.offset is not None, want.bias is not None),
    )
    dx, dfactor, dbias = pulled
    if dx is not None:
        dx = dx.reshape(x.shape)
        if dh is not None and not form.adjacent:
            dx = (dx.astype(form.width) + dh.astype(form.width)).astype(x.dtype)
    gradients = [
        *([] if want.scale is None else [(form.to_parameter(dfactor, want.scale), want.scale)]),
        *([] if want.bias is None else [(form.to_parameter(dbias, want.bias), want.bias)]),
        *([] if want.offset is None else [(jnp.sum(dfactor), want.offset)]),
    ]
    return [*([] if dx is None else [dx]), *_over_devices(norm, x, gradients, places)]


def _over_devices(norm: Norm, x, gradients, places: Places | None) -> list[jax.Array]:
    """Gradients of parameters summed over the devices that share them; all that have the same devices, at once."""
    names = []
    for _, like in gradients:
        shape = full_shape(like, x.ndim, norm.features) if like.ndim else (1,) * x.ndim
        own = norm.features if 0 < like.ndim < x.ndim else [a for a, n in enumerate(shape) if n > 1]
        names.append(names_of(places, [a for a in range(x.ndim) if a not in own]))
    sums = [g for g, _ in gradients]
    for shared in set(names) - {()}:
        which = [i for i, n in enumerate(names) if n == shared]
        for i, s in zip(which, lax.psum([sums[i] for i in which], shared), strict=True):
            sums[i] = s
    return [s.astype(like.dtype) for s, (_, like) in zip(sums, gradients, strict=True)]
