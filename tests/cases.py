"""THE table: every norm, what its numbers share, and the shapes to try it on. A norm without a row fails test_api.py.

A row of a norm that standardizes says in labels (see reference.py) what the call says in axes; the other rows, in
family.py, have a formula. General tests run over all rows; add a row and values, gradients, half precision, masks,
transforms and degenerate inputs are tested.
"""

from functools import partial

import family
import jax.numpy as jnp
import numpy as np
import pytest
from table import Case, Shape, index_of, label

import jaxnorm as jn

SHAPES: tuple[Shape, ...] = ((2, 3), (5, 4), (3, 5, 4), (4, 5, 6, 7))


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
        areas=index_of(shape, kept),
        features=index_of(shape, reduced),
        parameters=tuple(shape[a] for a in sorted(reduced)),
        center=function is jn.layer_norm,
        has_bias=function is jn.layer_norm,
        **extra,
    )


def _group(shape: Shape, feature_axis, size: int, axis=None, **extra) -> Case:
    features = tuple(np.atleast_1d(feature_axis) % len(shape))
    index = index_of(shape, features)
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
    index = index_of(shape, features)
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
    index = index_of(shape, features)
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


STANDARD = _all()
CORE = [case for case in STANDARD if case.core]
FAMILY = family.rows()
CASES = STANDARD + FAMILY


def having(*needs: str) -> list:
    """The core rows, and the family's (in CI) but for those that lack what a test needs, with their reasons."""
    able = [case for case in FAMILY if not set(needs) & set(case.lacks)]
    return [*CORE, *(pytest.param(case, marks=pytest.mark.full) for case in able)]
