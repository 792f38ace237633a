"""What the modules share: their options, and what becomes of x, the parameters and the mask on their way in."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Axes, AxisLike, Call, IndexGroups
from jaxnorm.standardize import standardize

Metadata = Mapping[str, Any]
NONE: Metadata = MappingProxyType({})


class Norm(nnx.Module):
    """What the norms share: options, and what becomes of x, the parameters and the mask on their way in."""

    def _options(self, epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset):
        self.epsilon, self.scale_offset, self.use_fast_variance = epsilon, scale_offset, use_fast_variance
        self.dtype, self.promote_dtype = dtype, promote_dtype
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups

    def _parameter(self, wanted, init, num_features, dtype, metadata, rngs):
        self.num_features, self.param_dtype = num_features, dtype
        return nnx.Param(init(rngs.params(), (num_features,), dtype), **metadata) if wanted else nnx.data(None)

    def _promote(self, x, *variables):
        values = (None if variable is None else variable[...] for variable in variables)
        return self.promote_dtype((x, *values), dtype=self.dtype)

    def _keywords(self, x, scale, bias) -> dict[str, Any]:
        """The keywords of every pure function; the output dtype is that of the promoted arrays together."""
        return {
            "epsilon": self.epsilon,
            "axis_name": self.axis_name,
            "scale_offset": self.scale_offset,
            "dtype": dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype),
        }

    def _groups(self) -> IndexGroups | None:
        return None if self.axis_name is None else self.axis_index_groups

    def _standardize(self, call, scale, bias, axes, features, mask, center=True):
        keywords = self._keywords(call.x, scale, bias)
        scale, bias = spread(call, scale, features), spread(call, bias, features)
        groups, where = self._groups(), where_of(mask)
        keywords |= {"axis": axes, "where": where, "axis_index_groups": groups, "center": center}
        return standardize(call.x, scale, bias, **keywords)[0]


def learned(wanted: bool, init: Any, shape: Axes, dtype: DTypeLike, rngs: nnx.Rngs) -> Any:
    return nnx.Param(init(rngs.params(), shape, dtype)) if wanted else nnx.data(None)


def where_of(mask: ArrayLike | None) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask).astype(bool)


def axes_of(call: Call, name: str, axes: AxisLike) -> Axes:
    """Sorted non-negative axes; as in Flax one may be named twice."""
    each = axes if isinstance(axes, Iterable) else (axes,)
    return tuple(sorted({call.axes(axis, name)[0] for axis in each}))


def spread(call: Call, parameter: jax.Array | None, features: Axes) -> jax.Array | None:
    """A parameter of `num_features` values as it broadcasts to x, whose features may be several axes."""
    if parameter is None:
        return None
    shape = tuple(size if axis in features else 1 for axis, size in enumerate(call.x.shape))
    if parameter.size != math.prod(shape):
        wrong_features(call, parameter.size, features)
    return parameter.reshape(shape)


def wrong_features(call: Call, num_features: int, features: Axes) -> NoReturn:
    got = f"num_features={num_features}, x.shape={call.x.shape}, feature axes {features}"
    call.fail("x must have `num_features` features", got, "Check num_features and the feature axes.")
