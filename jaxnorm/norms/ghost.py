"""Ghost batches: the rows of a batch normalized in parts, whose moments merge to those of the whole batch."""

import math

import jax
import jax.numpy as jnp

from jaxnorm.arguments import Axes, Call
from jaxnorm.moments import Moments, merge, merge_axis
from jaxnorm.rules import Area
from jaxnorm.standardize import standardize_area


def standardize_ghosts(
    call: Call, where, scale, bias, *, axes: Axes, size: int, **options
) -> tuple[jax.Array, Moments]:
    """Standardize each ghost of `size` rows of the leading reduced axis; the moments are the whole batch's.

    All full ghosts at once, by a reshape. A remainder is one smaller ghost; a remainder of one value, which has no
    variance, joins its neighbour.
    """
    if not axes:
        call.several_values(axes, None, None)
    lead, space = axes[0], axes[1:]
    rows = call.x.shape[lead]
    call.several_values(axes, None, None, rows=min(size, rows))
    count, rest = divmod(rows, size)
    if count and rest * math.prod(call.shape(space)) == 1:
        count, rest = count - 1, rest + size
    full = count * size

    def cut(v: jax.Array | None, start: int, stop: int) -> jax.Array | None:
        """Those rows; what is the same for all rows stays."""
        return v if v is None or v.shape[lead] == 1 else jax.lax.slice_in_dim(v, start, stop, axis=lead)

    def fold(v: jax.Array | None) -> jax.Array | None:
        """The leading axis as (ghost, row of the ghost)."""
        if v is None:
            return None
        return v.reshape(*v.shape[:lead], *((1, 1) if v.shape[lead] == 1 else (count, size)), *v.shape[lead + 1 :])

    arrays = (call.x, scale, bias, where)
    ys, moments = [], []
    if count:
        x, *parameters, mask = (fold(cut(v, 0, full)) for v in arrays)
        area = Area(tuple(a + 1 for a in axes))
        y, m = standardize_area(x, *parameters, area=area, where=mask, moments=True, **options)
        ys.append(y.reshape(*y.shape[:lead], full, *y.shape[lead + 2 :]))
        moments.append(merge_axis(m, lead))  # every axis before the leading reduced one is kept
    if rest or not count:
        x, *parameters, mask = (cut(v, full, rows) for v in arrays)
        y, m = standardize_area(x, *parameters, area=Area(axes), where=mask, moments=True, **options)
        ys.append(y)
        moments.append(m)
    return (ys[0], moments[0]) if len(ys) == 1 else (jnp.concatenate(ys, axis=lead), merge(*moments))
