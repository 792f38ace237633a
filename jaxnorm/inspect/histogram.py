"""Histograms with edges that are known before the data: counts that add up over steps, and percentiles from them.

Counting must be cheap enough to do while training. A search over all edges reads a table eight times per value; here
the leading bits of the float itself (sign, exponent, four bits of mantissa) say in one reading which few bins are
left. The counts are exact all the same, and for any edges.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxnorm.arguments import Axes

_LINEAR, _STEP, _SIDE = 0.02, 0.11, 128  # below _LINEAR bins are of equal width, far above it of equal ratio
EDGES = (_LINEAR * np.sinh(_STEP * np.arange(-_SIDE, _SIDE + 1))).astype(np.float32)
EDGES.setflags(write=False)
"""257 edges of 256 bins from -13,027.7 to 13,027.7, spaced like sinh: 0.02 sinh(0.11 k).

The bin of a value v is at most (e^0.11 - 1) sqrt(v^2 + 0.02^2) wide: 0.0023 at zero, 11.7% of v far from it. 0 is an
edge, and zeros lie in the bin above it.
"""

_BITS = 13


class _Search(NamedTuple):
    """Where a search among edges starts, by the leading bits of the value, and how many halvings are left."""

    first: np.ndarray
    edges: np.ndarray
    halvings: int


def check_edges(function: str, edges: ArrayLike) -> np.ndarray:
    """Edges as float32 NumPy numbers, which a histogram's bins are between."""
    if isinstance(edges, Tracer):
        raise TypeError(f"{function}: `edges` must be known before; got a traced value. Make them outside of jit.")
    given = np.asarray(edges)
    fixed = given.astype(np.float32)
    if fixed.ndim != 1 or len(fixed) < 2 or not np.all(np.isfinite(fixed)) or not np.all(np.diff(fixed) > 0):
        raise ValueError(
            f"{function}: `edges` must be at least two finite numbers that increase, as float32 too; got {given}. "
            "np.linspace(low, high, bins + 1) is one way."
        )
    return fixed


@lru_cache(maxsize=32)
def _search(edges: bytes) -> _Search:
    """The table for these edges (without the outermost, which bound nothing)."""
    inner = np.frombuffer(edges, np.float32)[1:-1]
    cells = np.arange(2**_BITS, dtype=np.uint32) << (32 - _BITS)
    corners = np.stack([cells, cells | np.uint32(2 ** (32 - _BITS) - 1)]).view(np.float32)
    corners = np.where(np.isnan(corners), np.copysign(np.inf, corners), corners)
    first, last = (np.searchsorted(inner, corner, side="right") for corner in (corners.min(0), corners.max(0)))
    halvings = int(np.max(last - first)).bit_length()
    return _Search(first.astype(np.int32), np.append(inner, np.full(2**halvings, np.inf, np.float32)), halvings)


def count(x: jax.Array, valid: jax.Array, axes: Axes, edges: bytes) -> jax.Array:
    """How many valid values lie in each bin: int32 of the kept axes' shape, then the bins.

    A bin holds its lower edge and not its upper one; the first and the last also hold everything beyond them.
    Subnormal numbers (below 1.2e-38) are zeros, as in all arithmetic of XLA.
    """
    search = _search(edges)
    bins = len(edges) // 4 - 1
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    sets = math.prod(kept)
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) >> np.uint32(32 - _BITS)
    place = jnp.asarray(search.first)[bits.astype(jnp.int32)]
    table = jnp.asarray(search.edges)
    for step in (2**n for n in reversed(range(search.halvings))):
        place = jnp.where(x.astype(jnp.float32) >= table[place + (step - 1)], place + step, place)
    own = place + bins * jnp.broadcast_to(jnp.arange(sets, dtype=jnp.int32).reshape(kept), x.shape)
    own = jnp.where(valid, own, sets * bins)  # outside: dropped
    counts = jnp.zeros(sets * bins, jnp.int32).at[own.ravel()].add(1, mode="drop")
    return counts.reshape(*(size for axis, size in enumerate(x.shape) if axis not in axes), bins)


def percentiles(summary: object, q: ArrayLike, edges: ArrayLike = EDGES) -> jax.Array:
    """Percentiles of the values that a histogram counted.

        p = e_k + (e_{k+1} - e_k) (n q / 100 - c_k) / h_k

    in the first bin k with c_k + h_k >= n q / 100 and h_k > 0, where h are the counts, c_k those before bin k, n all of
    them, e the edges.

    How far off: `np.percentile(x, q, method="inverted_cdf")`, the value of rank ceil(n q / 100), lies in that same bin,
    so the error is at most the bin's width: with `EDGES` 0.117 sqrt(p^2 + 0.02^2), and far less where values are dense.
    NumPy's default lies between two neighbours, which adds at most the gap between them. Of values beyond the outermost
    edges the bin has no upper limit: the result is then an edge.

    Args:
      summary: a Summary, one from a History (with leading steps), or a histogram [..., bins] of counts.
      q: one percentage from 0 to 100 or several.
      edges: those that the histogram was made with, [bins + 1].

    Returns:
      float32 of q's shape, then the histogram's without bins. NaN where nothing was counted.

    Raises:
      ValueError: as many edges as do not fit the bins; q outside 0 to 100.

    Example:
      >>> import numpy as np
      >>> percentiles(np.array([16, 0, 16]), [25, 50, 75], edges=[0.0, 1.0, 2.0, 3.0])
      Array([0.5, 1. , 2.5], dtype=float32)

    Reference: Hyndman & Fan 1996, "Sample quantiles in statistical packages", definitions 1 and 4.
    """
    counts = jnp.asarray(getattr(summary, "histogram", summary))
    limits = check_edges("percentiles", edges)
    if counts.ndim == 0 or counts.shape[-1] != len(limits) - 1:
        raise ValueError(
            f"percentiles: `edges` must be one more than the histogram's bins; got {len(limits)} edges, histogram of "
            f"shape {counts.shape}. Pass the edges that it was made with."
        )
    if not isinstance(q, Tracer) and not np.all((np.asarray(q) >= 0) & (np.asarray(q) <= 100)):
        raise ValueError(f"percentiles: `q` must be from 0 to 100; got q={q}. The median is 50.")
    share = jnp.asarray(q, jnp.float32) / 100
    return _percentiles(counts, share, limits)


@jax.jit
def _percentiles(counts: jax.Array, share: jax.Array, edges: jax.Array) -> jax.Array:
    share = share.reshape(share.shape + (1,) * (counts.ndim - 1))
    after = jnp.cumsum(counts, -1)
    total = after[..., -1].astype(jnp.float32)
    rank = share * total[(None,) * (share.ndim - total.ndim)]
    # 15% of 1000 is 150.00001 in float32, and must not fall into the next bin.
    whole = jnp.round(rank)
    rank = jnp.where(jnp.abs(rank - whole) <= 1e-6 * whole, whole, rank)
    spread = lambda a: a[(None,) * (share.ndim - counts.ndim + 1)]
    passed = (spread(after).astype(jnp.float32) < rank[..., None]) | (spread(after) == 0)
    place = jnp.minimum(jnp.sum(passed, -1, dtype=jnp.int32), counts.shape[-1] - 1)
    pick = lambda a: jnp.take_along_axis(jnp.broadcast_to(spread(a), passed.shape), place[..., None], -1)[..., 0]
    inside = pick(counts).astype(jnp.float32)
    fraction = (rank - (pick(after) - pick(counts)).astype(jnp.float32)) / jnp.maximum(inside, 1)
    value = edges[place] + (edges[place + 1] - edges[place]) * jnp.clip(fraction, 0, 1)
    return jnp.where(total > 0, value, jnp.nan)
