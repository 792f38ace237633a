"""What is right: NumPy in double precision or better, written from the papers. Never imports jaxnorm.

A norm is given by labels instead of axes: `areas[i]` says which set of numbers element i shares statistics with,
`features[i]` which entry of scale and bias belongs to it. So one formula serves every norm, and nothing here can
repeat a mistake about axes, groups or ghosts. The formulas are the plain ones, which lose digits where a mean is large;
so they run in extended precision, where NumPy has it, and judge float64 results too.
"""

from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
    """Per-set statistics: labels, and for every set its mean, variance and number of values."""

    areas: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    count: np.ndarray


def measure(x, areas, where=None, center=True) -> Sums:
    """mean = sum(x) / n, var = sum(|x - mean|^2) / n of every set; without a value 0 and 1."""
    x, areas, valid = _flat(x, areas, where)
    sets = areas.max(initial=-1) + 1
    count = np.bincount(areas[valid], minlength=sets)
    mean = np.zeros(sets, x.dtype)
    if center:
        mean = _sum(areas[valid], x[valid], sets) / np.maximum(count, 1)
    var = _sum(areas[valid], np.abs(x[valid] - mean[areas[valid]]) ** 2, sets)
    return Sums(areas, mean, np.where(count > 0, var / np.maximum(count, 1), 1.0), count)


def standardize(x, areas, features, scale, bias, *, epsilon, where=None, center=True, given=None, offset=0.0):
    """Ioffe & Szegedy 2015, algorithm 1 (with `given` = (mean, var) per set: algorithm 2); masked entries 0."""
    _, _, valid = _flat(x, areas, where)
    xhat, _ = _xhat(x, areas, where, epsilon, center, given)
    y = xhat * (1.0 if scale is None else offset + np.ravel(_wide(scale))[np.ravel(features)])
    y = y + (0.0 if bias is None else np.ravel(_wide(bias))[np.ravel(features)])
    return _double(np.where(valid, y, 0)).reshape(np.shape(x))


def standardize_gradient(x, areas, features, scale, bias, dy, *, epsilon, where=None, center=True, given=None):
    """The chain rule of Ioffe & Szegedy 2015, section 3, as printed there: (dx, dscale, dbias) for real x."""
    flat, labels, valid = _flat(x, areas, where)
    features = np.ravel(features)
    dy = np.where(valid, np.ravel(_wide(dy)), 0.0)
    xhat, stats = _xhat(x, areas, where, epsilon, center, given)
    parameters = features.max(initial=-1) + 1
    dscale = _sum(features, np.where(valid, xhat, 0) * dy, parameters)
    dbias = _sum(features, dy, parameters)
    dxhat = dy * (1.0 if scale is None else np.ravel(_wide(scale))[features])
    deviation = np.where(valid, flat - stats.mean[labels], 0.0)
    sigma = np.sqrt(stats.var + epsilon)
    if given is not None:
        dx = dxhat / sigma[labels]
    else:
        n = np.maximum(stats.count, 1)
        sets = len(n)
        dvar = _sum(labels, dxhat * deviation, sets) * -0.5 * sigma**-3
        dmean = -_sum(labels, dxhat, sets) / sigma - 2 * dvar * _sum(labels, deviation, sets) / n
        dx = dxhat / sigma[labels] + dvar[labels] * 2 * deviation / n[labels]
        if center:
            dx = dx + dmean[labels] / n[labels]
    return _double(np.where(valid, dx, 0.0)).reshape(np.shape(x)), _double(dscale), _double(dbias)


def gradient_terms(x, areas, features, scale, dy, *, epsilon, where=None, center=True, given=None):
    """The largest term that dx of each element adds up: |dy scale| / sigma. In sets of two nearly all of it cancels."""
    _, labels, valid = _flat(x, areas, where)
    _, stats = _xhat(x, areas, where, epsilon, center, given)
    terms = np.where(valid, np.abs(np.ravel(_wide(dy)) * np.ravel(_wide(scale))[np.ravel(features)]), 0)
    return _double(terms.max(initial=0) / np.sqrt(stats.var + epsilon)[labels]).reshape(np.shape(x))


def running(old, batch, *, past, ddof=0):
    """old and batch are (mean, var, n): past * old + (1 - past) * batch, with n / (n - ddof) on the variance."""
    mean, var, n = batch
    return past * old[0] + (1 - past) * mean, past * old[1] + (1 - past) * var * n / (n - ddof)


def _xhat(x, areas, where, epsilon, center, given):
    flat, labels, valid = _flat(x, areas, where)
    stats = measure(x, areas, where, center)
    if given is not None:
        stats = stats._replace(mean=np.ravel(_wide(given[0])), var=np.ravel(_wide(given[1])))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(valid, flat, 0) - stats.mean[labels]) / np.sqrt(stats.var + epsilon)[labels], stats


def _sum(labels, values, sets):
    total = np.zeros(sets, values.dtype)
    np.add.at(total, labels, values)
    return total


def _wide(x):
    x = np.asarray(x)
    return x.astype(np.clongdouble if np.iscomplexobj(x) else np.longdouble)


def _double(x):
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _flat(x, areas, where):
    x = _wide(x)
    valid = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    return x.ravel(), np.ravel(areas), valid.ravel()
