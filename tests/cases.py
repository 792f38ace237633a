"""THE table: every norm, what its numbers share, and the shapes to try it on. A norm without a row fails test_api.py.

A row says in labels (see reference.py) what the call says in axes. General tests run over all rows; add a row and
values, gradients, half precision, masks, transforms and degenerate inputs are tested.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp
import numpy as np

import jaxnorm as jn

Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((2, 3), (5, 4), (3, 5, 4), (4, 5, 6, 7))


@dataclass(frozen=True)
class Case:
    """One norm with its options, on one shape.

    norm: (x, scale, bias, **common options) -> y. areas, features: labels of x's elements. parameters: scale's shape.
    given: (mean, var) per area where the statistics are not x's own.
    """

    name: str
    function: Callable
    norm: Callable
    shape: Shape
    areas: np.ndarray = field(repr=False)
    features: np.ndarray = field(repr=False)
    parameters: Shape
    center: bool = True
    has_bias: bool = True
    epsilon: float = 1e-5
    given: tuple[np.ndarray, np.ndarray] | None = None
    core: bool = False  # one per derivative rule and arrangement of axes: the plain command runs these alone

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.shape))}"

    @property
    def n(self) -> int:
        """Numbers in the largest sum of the gradient: a whole set, or all that share a parameter."""
        return int(max(np.bincount(self.areas.ravel()).max(), np.bincount(self.features.ravel()).max()))

    def call(self, x, scale=None, bias=None, **options):
        return self.norm(x, scale, *([bias] if self.has_bias else []), epsilon=self.epsilon, **options)

    def reference_options(self) -> dict:
        return {"epsilon": self.epsilon, "center": self.center, "given": self.given}

    def data(self, seed: int = 0, dtype=np.float32):
        """x with means far from zero that differ by feature, scale, bias, and a random cotangent."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=self.shape) * 1.5 + 3.0 + 0.5 * (self.features % 5)
        scale, bias = rng.uniform(0.5, 1.5, self.parameters), rng.normal(size=self.parameters)
        dy = rng.normal(size=self.shape)
        x, dy = (jnp.asarray(a, dtype) for a in (x, dy))
        wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
        return x, jnp.asarray(scale, wide), jnp.asarray(bias, wide) if self.has_bias else None, dy


def label(*coordinates: np.ndarray) -> np.ndarray:
    """One number for each combination of coordinates that occurs."""
    flat = np.stack([np.broadcast_to(c, coordinates[0].shape).ravel() for c in coordinates])
    return np.unique(flat, axis=1, return_inverse=True)[1].reshape(coordinates[0].shape)


def _index(shape: Shape, axes) -> np.ndarray:
    """Position of each element within the axes, counted in their order."""
    index = np.zeros(shape, int)
    for a in sorted(axes):
        index = index * shape[a] + np.indices(shape)[a]
    return index


def _axes_name(axes) -> str:
    return ",".join(map(str, axes)) if isinstance(axes, tuple) else str(axes)


def _row(function, shape: Shape, axis, **extra) -> Case:
    """Layer and RMS norm: `axis` shares, and carries the parameters."""
    reduced = tuple(range(len(shape))) if axis is None else tuple(np.atleast_1d(axis) % len(shape))
    kept = [a for a in range(len(shape)) if a not in reduced]
    return Case(
        f"{function.__name__}[{_axes_name(axis)}]",
        function,
        partial(function, axis=axis),
        shape,
        areas=_index(shape, kept),
        features=_index(shape, reduced),
        parameters=tuple(shape[a] for a in sorted(reduced)),
        center=function is jn.layer_norm,
        has_bias=function is jn.layer_norm,
        **extra,
    )


def _group(shape: Shape, feature_axis, size: int, axis=None, **extra) -> Case:
    features = tuple(np.atleast_1d(feature_axis) % len(shape))
    index = _index(shape, features)
    space = set(range(1, len(shape))) if axis is None else set(axis)
    kept = [a for a in range(len(shape)) if a not in space and a not in features]
    options = {"group_size": size, "feature_axis": feature_axis} | ({} if axis is None else {"axis": axis})
    return Case(
        f"group_norm[{_axes_name(feature_axis)}/{size}{'' if axis is None else ' over ' + _axes_name(axis)}]",
        jn.group_norm,
        partial(jn.group_norm, **options),
        shape,
        areas=label(index // size, *(np.indices(shape)[a] for a in kept)),
        features=index,
        parameters=tuple(shape[a] for a in sorted(features)),
        **extra,
    )


def _instance(shape: Shape, feature_axis, **extra) -> Case:
    features = tuple(np.atleast_1d(feature_axis) % len(shape))
    index = _index(shape, features)
    return Case(
        f"instance_norm[{_axes_name(feature_axis)}]",
        jn.instance_norm,
        partial(jn.instance_norm, feature_axis=feature_axis),
        shape,
        areas=label(index, np.indices(shape)[0]),
        features=index,
        parameters=tuple(shape[a] for a in sorted(features)),
        **extra,
    )


def _training(x, scale, bias, **options):
    return jn.batch_norm(x, None, scale, bias, training=True, **options)[0]


def _inference(x, scale, bias, *, stats, axis_name=None, **options):
    return jn.batch_norm(x, jn.RunningStats(*map(jnp.asarray, stats)), scale, bias, training=False, **options)[0]


def _batch(shape: Shape, feature_axis, ghost_size=None, training=True, **extra) -> Case:
    features = tuple(np.atleast_1d(feature_axis) % len(shape))
    index = _index(shape, features)
    parameters = tuple(shape[a] for a in sorted(features))
    name = f"batch_norm[{_axes_name(feature_axis)}{f' ghosts of {ghost_size}' if ghost_size else ''}]"
    areas, given = index, None
    if not training:
        count = int(np.prod(parameters))
        mean, var = 2.0 + 0.25 * np.arange(count, dtype=np.float32), 0.5 + 0.125 * np.arange(count, dtype=np.float32)
        given = mean, var
        stats = (mean.reshape(parameters), var.reshape(parameters), np.ones(parameters, np.float32))
        norm, name = partial(_inference, stats=stats, feature_axis=feature_axis), name + "inference"
    elif ghost_size:
        lead = min(set(range(len(shape))) - set(features))
        ghost = np.indices(shape)[lead] // ghost_size
        if shape[lead] % ghost_size == 1 and areas.size == shape[lead] * (areas.max() + 1):
            ghost = np.minimum(ghost, shape[lead] // ghost_size - 1)  # one value left over joins its neighbour
        areas = label(ghost, index)
        norm = partial(_training, feature_axis=feature_axis, ghost_size=ghost_size)
    else:
        norm = partial(_training, feature_axis=feature_axis)
    return Case(name, jn.batch_norm, norm, shape, areas, index, parameters, given=given, **extra)


def _all() -> list[Case]:
    cases = []
    for shape in SHAPES:
        every = range(len(shape))
        core = shape == (3, 5, 4)
        cases += [_row(jn.layer_norm, shape, a, core=core and a == 2) for a in every]
        cases += [_row(jn.layer_norm, shape, None), _row(jn.layer_norm, shape, (-1, 0), core=core)]
        cases += [_row(jn.rms_norm, shape, a, core=core and a == 2) for a in every]
        cases += [_batch(shape, a, core=core and a == 2) for a in every]
        cases += [_batch(shape, a, training=False, core=core and a == 1) for a in every]
        cases += [
            _batch(shape, a, ghost_size=2, core=core and a == 2) for a in every if len(shape) > 2 or shape[1 - a] > 3
        ]
    for shape in SHAPES[2:]:
        every = range(len(shape))
        cases += [_instance(shape, a, core=shape == (3, 5, 4) and a == 2) for a in every[1:]]
    cases += [
        _group((5, 4), 1, 2),
        _group((3, 5, 4), -1, 2, core=True),
        _group((3, 5, 4), 1, 5),
        _group((3, 5, 4), 0, 3, axis=(2,)),
        _group((4, 5, 6, 7), 2, 3),
        _group((4, 5, 6, 7), -1, 7),
        _group((4, 5, 6, 7), (3, 1), 7, core=True),
        _group((4, 5, 6, 7), (1, 2), 10),
        _group((4, 5, 6, 7), 2, 2, axis=(0, 1)),
        _group((4, 5, 6, 7), 1, 1),
        _instance((4, 5, 6, 7), (1, 3)),
        _batch((4, 5, 6, 7), (3, 1)),
        _batch((5, 4), 1, ghost_size=3),
        _batch((7, 2, 3), -1, ghost_size=3, core=True),
        _batch((4, 7, 3), 0, ghost_size=3),
    ]
    return cases


CASES = _all()
CORE = [case for case in CASES if case.core]
