"""How close is close: one rule of dtype and size for every test."""

import numpy as np


def tolerance(dtype, n: int, size: float = 1.0) -> float:
    """Largest acceptable error of a result of magnitude `size` that sums over n numbers, computed as documented.

    A sum of n rounded numbers errs by about sqrt(n) roundings; a norm makes a handful of them in a row.
    """
    wide = np.float64 if np.dtype(dtype).itemsize == 8 and np.dtype(dtype).kind == "f" else np.float32
    return 4 * float(np.finfo(wide).eps) * max(4.0, n**0.5) * max(size, 1.0)


def assert_close(actual, expected, dtype, n: int) -> None:
    """`actual` in `dtype` equals float64 `expected`: to `tolerance`, and for half precision rounded correctly to 1 ulp."""
    actual = np.asarray(actual)
    assert actual.dtype == np.dtype(dtype), (actual.dtype, dtype)
    assert actual.shape == np.shape(expected), (actual.shape, np.shape(expected))
    wide = actual.astype(np.float64)
    assert np.isfinite(wide).all()
    limit = tolerance(dtype, n, np.abs(expected).max(initial=0.0))
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
