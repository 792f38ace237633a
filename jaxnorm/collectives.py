"""Sums over devices: the one place that knows how an axis name is reduced."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm.arguments import AxisName, IndexGroups


def total(value: jax.Array, axis_name: AxisName, groups: IndexGroups | None = None) -> jax.Array:
    """Sum of `value` over the devices of `axis_name` (of this device's own group); `value` itself without a name.

    `psum` takes `axis_index_groups` neither under `vmap` nor under `shard_map`, so groups gather and then select by
    membership, which is static. Selecting, not multiplying by zero: another group's NaN is not ours.
    """
    if axis_name is None:
        return value
    if groups is None:
        return lax.psum(value, axis_name)
    size = sum(map(len, groups))
    member = np.zeros((size, size), bool)
    for group in groups:
        member[np.ix_(group, group)] = True
    gathered = value
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    for name in reversed(names):  # one at a time: vmap gathers over no more
        gathered = lax.all_gather(gathered, name)
    gathered = gathered.reshape(size, *value.shape)
    mine = jnp.asarray(member)[lax.axis_index(axis_name)]
    return jnp.sum(jnp.where(mine.reshape(-1, *[1] * value.ndim), gathered, 0), axis=0)
