"""How close is close: one rule of dtype and size for every test."""

import numpy as np


def tolerance(dtype, n: int, size: float | np.ndarray = 1.0):
    """Largest acceptable error of a result that sums n numbers, whose largest terms are of magnitude `size`.

    A sum of n rounded numbers errs by about sqrt(n) roundings; a norm makes a handful of them in a row.
    """
    wide = np.float64 if np.dtype(dtype).itemsize == 8 and np.dtype(dtype).kind == "f" else np.float32
    return 4 * float(np.finfo(wide).eps) * max(4.0, n**0.5) * np.maximum(size, 1.0)


def assert_close(actual, expected, dtype, n: int, terms: np.ndarray | float = 0.0) -> None:
    """`actual`, of `dtype`, equals `expected`: to `tolerance`, in half precision to one unit in the last place."""
    actual = np.asarray(actual)
    assert actual.dtype == np.dtype(dtype), (actual.dtype, dtype)
    assert actual.shape == np.shape(expected), (actual.shape, np.shape(expected))
    wide = actual.astype(np.float64)
    assert np.isfinite(wide).all()
    limit = tolerance(dtype, n, np.maximum(np.abs(expected).max(initial=0.0), terms))
    if np.dtype(dtype).itemsize == 2:
        limit = limit + ulp(expected, dtype)
    excess = np.abs(wide - expected) - limit
    assert (excess <= 0).all(), f"off by {np.abs(wide - expected).max():.3g}, allowed {np.max(limit):.3g}"


def ulp(x, dtype) -> np.ndarray:
    """The gap between neighbours of x in a half-precision dtype, with the smallest normal number's gap near zero."""
    import ml_dtypes

    info = ml_dtypes.finfo(dtype)
    magnitude = np.maximum(np.abs(np.asarray(x, np.float64)), float(info.smallest_normal))
    return 2.0 ** np.floor(np.log2(magnitude)) * float(info.eps)
