"""The rest of the family in NumPy, each written from its paper, in extended precision. Never imports jaxnorm.

A formula takes x (wide), scale, bias (or None) and a mask of x's shape, and its own options; it returns y before masked
places are set to 0. Gradients are taken of these formulas by central differences, which in extended precision are good
to 1e-14; what a paper holds constant there is computed from `still`, the x that is not moved.
"""

import inspect
import math
from collections.abc import Callable

import numpy as np


def wide(x):
    x = np.asarray(x)
    return x.astype(np.clongdouble if np.iscomplexobj(x) else np.longdouble)


def evaluate(formula: Callable, x, scale, bias, where=None):
    """y in double precision, 0 at masked places."""
    x = wide(x)
    valid = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    scale, bias = (None if p is None else wide(p) for p in (scale, bias))
    x = np.where(valid, x, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = formula(x, scale, bias, valid, **_still(formula, x))
    return np.where(valid, y, 0).astype(np.complex128 if np.iscomplexobj(y) else np.float64)


def gradient(formula: Callable, x, scale, bias, dy, where=None):
    """(dx, dscale, dbias) of sum(dy y), by the sixth-order central difference of every element."""
    arguments = [None if a is None else wide(a) for a in (x, scale, bias)]
    valid = np.broadcast_to(True if where is None else np.asarray(where), arguments[0].shape)
    dy, results = np.where(valid, wide(dy), 0), []
    arguments[0] = np.where(valid, arguments[0], 0)
    still = _still(formula, arguments[0])
    for i, argument in enumerate(arguments):
        if argument is None:
            results.append(None)
            continue
        slopes = np.zeros(argument.shape, np.longdouble)
        for index in np.ndindex(argument.shape):
            if i == 0 and not valid[index]:
                continue

            def moved(step, i=i, index=index, argument=argument):
                changed = argument.copy()
                changed[index] += step
                given = [changed if k == i else a for k, a in enumerate(arguments)]
                with np.errstate(divide="ignore", invalid="ignore"):
                    return np.where(valid, formula(*given, valid, **still), 0)

            h = np.longdouble(1e-3)  # subtracted before they are summed: what does not move leaves no rounding
            first, second, third = (np.sum(dy * (moved(k * h) - moved(-k * h))) for k in (1, 2, 3))
            slopes[index] = (45 * first - 9 * second + third) / (60 * h)
        results.append(slopes.astype(np.float64))
    return results


def _still(formula: Callable, x) -> dict:
    return {"still": x} if "still" in inspect.signature(formula).parameters else {}


# -- helpers of the formulas ------------------------------------------------------------------------------------------


def mean(x, axes, valid):
    return np.sum(x * valid, axes, keepdims=True) / np.maximum(np.sum(valid, axes, keepdims=True), 1)


def variance(x, axes, valid):
    """1 where nothing is valid."""
    count = np.sum(valid, axes, keepdims=True)
    return np.where(count > 0, mean(np.abs(x - mean(x, axes, valid)) ** 2, axes, valid), 1)


def affine(y, scale, bias, features):
    """Parameters of the features' shape, or full rank."""

    def spread(p):
        if p.ndim == y.ndim:
            return p
        return p.reshape([n if axis in features else 1 for axis, n in enumerate(y.shape)])

    y = y if scale is None else y * spread(scale)
    return y if bias is None else y + spread(bias)


def others(x, *axes):
    return tuple(a for a in range(x.ndim) if a not in axes)


# -- formulas ---------------------------------------------------------------------------------------------------------


def renorm(x, scale, bias, valid, *, still, feature, epsilon, old_mean, old_var, r_max, d_max):
    """Ioffe 2017, algorithm 1; no gradient through r and d."""
    axes = others(x, feature)
    shape = [n if a == feature else 1 for a, n in enumerate(x.shape)]
    old_sigma = np.sqrt(wide(old_var).reshape(shape) + epsilon)
    r = np.clip(np.sqrt(variance(still, axes, valid) + epsilon) / old_sigma, 1 / r_max, r_max)
    d = np.clip((mean(still, axes, valid) - wide(old_mean).reshape(shape)) / old_sigma, -d_max, d_max)
    xhat = (x - mean(x, axes, valid)) / np.sqrt(variance(x, axes, valid) + epsilon)
    return affine(xhat * r + d, scale, bias, (feature,))


def center(x, scale, bias, valid, *, feature):
    """Salimans & Kingma 2016, section 4."""
    return affine(x - mean(x, others(x, feature), valid), None, bias, (feature,))


def whiten(x, scale, bias, valid, *, feature, groups, epsilon, method, steps=5):
    """Huang et al. 2018, algorithm 1; 2019, algorithm 1 (P^3 written out); Siarohin et al. 2019, section 3.1."""
    moved, ok = np.moveaxis(x, feature, -1), np.moveaxis(valid, feature, -1)
    rows, ok = moved.reshape(-1, x.shape[feature]), ok.reshape(-1, x.shape[feature])
    y, n = np.zeros_like(rows), max(ok[:, 0].sum(), 1)
    d = (rows - mean(rows, 0, ok)) * ok
    for part in np.split(np.arange(rows.shape[1]), groups):
        cov = d[:, part].T @ d[:, part] / n + epsilon * np.eye(len(part))
        if method == "zca":
            w = _inverse_sqrt(cov)
        elif method == "cholesky":
            w = _inverse(_cholesky(cov))
        else:
            p, trace = np.eye(len(part), dtype=cov.dtype), np.trace(cov)
            for _ in range(steps):
                p = (3 * p - p @ p @ p @ (cov / trace)) / 2
            w = p / np.sqrt(trace)
        y[:, part] = d[:, part] @ w.T
    return affine(np.moveaxis(y.reshape(moved.shape), -1, feature), scale, bias, (feature,))


def _inverse_sqrt(a):
    """By Denman & Beavers' iteration, since NumPy has no eigenvalues in extended precision."""
    y, z = a, np.eye(len(a), dtype=a.dtype)
    for _ in range(60):
        y, z = (y + _inverse(z)) / 2, (z + _inverse(y)) / 2
    return z


def _inverse(a):
    """Gauss & Jordan, with pivots."""
    n = len(a)
    rows = np.hstack([a, np.eye(n, dtype=a.dtype)])
    for i in range(n):
        pivot = i + np.abs(rows[i:, i]).argmax()
        rows[[i, pivot]] = rows[[pivot, i]]
        rows[i] = rows[i] / rows[i, i]
        for j in range(n):
            if j != i:
                rows[j] = rows[j] - rows[j, i] * rows[i]
    return rows[:, n:]


def _cholesky(a):
    root = np.zeros_like(a)
    for i in range(len(a)):
        for j in range(i + 1):
            rest = a[i, j] - root[i, :j] @ root[j, :j]
            root[i, j] = np.sqrt(rest) if i == j else rest / root[j, j]
    return root


def lp(x, scale, bias, valid, *, axes, p, epsilon):
    """x / max(||x||_p, epsilon)."""
    size = np.abs(x)
    norm = np.max(size, axes, keepdims=True) if p == np.inf else np.sum(size**p, axes, keepdims=True) ** (1 / wide(p))
    return x / np.maximum(norm, epsilon)


def global_response(x, scale, bias, valid, *, feature, space, epsilon):
    """Woo et al. 2023, algorithm 1: gx = ||x||, nx = gx / (mean gx + eps), gamma x nx + beta + x."""
    response = np.sqrt(np.sum(np.abs(x) ** 2, space, keepdims=True))
    seen = np.broadcast_to(valid.any(space, keepdims=True), response.shape)
    share = response / (mean(response, (feature,), seen) + epsilon)
    return affine(x * share, scale, bias, (feature,)) + x


def filter_response(x, scale, bias, valid, *, feature, space, epsilon, threshold):
    """Singh & Krishnan 2020, eqs. 1 to 4."""
    z = affine(x / np.sqrt(mean(x**2, space, valid) + epsilon), scale, bias, (feature,))
    return z if threshold is None else np.maximum(z, affine(np.ones_like(z), wide(threshold), None, (feature,)))


def local_response(x, scale, bias, valid, *, feature, size, alpha, beta, k):
    """torch.nn.LocalResponseNorm's documentation."""
    y = np.zeros_like(x)
    n = x.shape[feature]
    for c in range(n):
        window = [j for j in range(c - size // 2, c + (size - 1) // 2 + 1) if 0 <= j < n]
        squares = np.sum(np.abs(np.take(x, window, feature)) ** 2, feature)
        here = (slice(None),) * feature + (c,)
        y[here] = x[here] / (k + alpha / size * squares) ** wide(beta)
    return y


def evo_s0(x, scale, bias, valid, *, feature, space, group_size, epsilon, v):
    """Liu et al. 2020, table 2; features last."""
    assert feature == x.ndim - 1
    shape = (*x.shape[:-1], x.shape[-1] // group_size, group_size)
    var = variance(x.reshape(shape), (*space, x.ndim), valid.reshape(shape))
    var = np.broadcast_to(var, (*var.shape[:-1], group_size)).reshape(*var.shape[:-2], x.shape[-1])
    return affine(x / (1 + np.exp(-wide(v) * x)) / np.sqrt(var + epsilon), scale, bias, (feature,))


def evo_b0(x, scale, bias, valid, *, feature, space, epsilon, v, given=None):
    """Liu et al. 2020, table 2; features last."""
    var = variance(x, others(x, feature), valid) if given is None else wide(given)
    own = variance(x, space, valid)
    return affine(x / np.maximum(np.sqrt(var + epsilon), wide(v) * x + np.sqrt(own + epsilon)), scale, bias, (feature,))


def squash(x, scale, bias, valid, *, function, alpha, shift=0.0):
    """Zhu et al. 2025, eq. 2; Chen et al. 2025."""
    inner = wide(alpha) * x + wide(shift)
    return affine(np.tanh(inner) if function == "tanh" else _erf(inner), scale, bias, (x.ndim - 1,))


def _erf(x):
    """2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (1 3 5 ... (2n+1)): all terms of one sign; 1 beyond 6."""
    x = np.clip(x, -6, 6)
    total, term = np.zeros_like(x), x.copy()
    for n in range(250):
        total = total + term
        term = term * 2 * x * x / (2 * n + 3)
    return total * np.exp(-x * x) * 2 / np.sqrt(4 * np.arctan(wide(1.0)))


def standardized_weight(x, scale, bias, valid, *, axes, epsilon, scaled):
    """Qiao et al. 2019, eq. 5; Brock et al. 2021, eq. 5."""
    kept = others(x, *axes)
    w = (x - mean(x, axes, valid)) / np.sqrt(variance(x, axes, valid) + epsilon)
    return affine(w / (np.sqrt(wide(math.prod(x.shape[a] for a in axes))) if scaled else 1), scale, None, kept)


def adaptive_instance(x, scale, bias, valid, *, space, epsilon, style):
    """Huang & Belongie 2017, eq. 8."""
    style = wide(style)
    every = np.ones(style.shape, bool)
    y = (x - mean(x, space, valid)) / np.sqrt(variance(x, space, valid) + epsilon)
    return y * np.sqrt(variance(style, space, every) + epsilon) + mean(style, space, every)
