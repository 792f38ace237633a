"""What norms with running statistics share: their options, and how the statistics are read and kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisName, IndexGroups, wide
from jaxnorm.nnx.norm import learned, where_of
from jaxnorm.running import RunningStats


def start(initial: NamedTuple, averages: bool) -> list[Any]:
    """A BatchStat for each statistic; updates are counted only where their weights depend on it."""
    needed = lambda name: name != "count" or averages
    return [nnx.BatchStat(value) if needed(name) else nnx.data(None) for name, value in initial._asdict().items()]


def read(module: Any, initial: NamedTuple) -> Any:
    """The statistics now, wide also where a checkpoint holds half precision."""
    kept = {name: getattr(module, name) for name in initial._fields}
    return initial._replace(**{n: v[...].astype(wide(v.dtype)) for n, v in kept.items() if v is not None})


def keep(module: Any, stats: Any) -> None:
    """In place; in a model that was cast to half precision a statistic becomes wide again with its first update."""
    for name, value in stats._asdict().items():
        variable = getattr(module, name)
        if variable is None:
            continue
        if variable.dtype == value.dtype:
            variable[...] = value
        else:
            variable.set_value(value)


class RunningNorm(nnx.Module):
    """Options of the norms of a batch, named as those of `flax.nnx.BatchNorm`; not a norm itself.

    Args:
      num_features: the size of `axis`.
      use_running_average: False trains: this batch's statistics, and an update of the running ones; True is inference.
        `train()`, `eval()` and `nnx.view` set it.
      axis: the feature axis; every other axis shares statistics.
      momentum: the weight of the past; None averages all updates equally.
      dtype, param_dtype: of y (None: that of x and the parameters together), and of the parameters.
      axis_name, axis_index_groups: share statistics over these devices.
      debias: the running statistics never contain their initial values.
    """

    def __init__(
        self, num_features: int, *,
        use_running_average: bool | None = False, axis: int = -1, momentum: float | None = 0.99,
        dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None, debias: bool = False,
    ):  # fmt: skip
        self.num_features, self.use_running_average, self.axis = num_features, use_running_average, axis
        self.momentum, self.debias = momentum, debias
        self.dtype, self.param_dtype = dtype, param_dtype
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        initial = self._initial()
        for name, variable in zip(initial._fields, start(initial, debias or momentum is None), strict=True):
            setattr(self, name, variable)

    def _initial(self) -> Any:
        return RunningStats.init(self.num_features)

    def _training(self, use_running_average: bool | None) -> bool:
        message = (
            f"{type(self).__name__}: `use_running_average` must be given; got None. Pass it to the constructor or the "
            "call, or set it with model.train(), model.eval() or nnx.view."
        )
        return not first_from(use_running_average, self.use_running_average, error_msg=message)

    def _keywords(self, mask: ArrayLike | None) -> dict[str, Any]:
        return {
            "momentum": self.momentum,
            "debias": self.debias,
            "feature_axis": self.axis,
            "where": where_of(mask),
            "axis_name": self.axis_name,
            "axis_index_groups": None if self.axis_name is None else self.axis_index_groups,
        }

    def set_view(self, use_running_average: bool | None = None):
        """What `nnx.view` may set; None leaves it as it is.

        Args:
          use_running_average: normalize by the running statistics instead of the batch's.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class ScaledRunningNorm(RunningNorm):
    """Options of those that divide too; not a norm itself.

    Args (beyond RunningNorm's, which `options` are):
      epsilon: added to the variance inside the root.
      use_bias, use_scale, bias_init, scale_init: of the parameters `bias` and `scale`.
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.
    """

    def __init__(
        self, num_features: int, *,
        epsilon: float = 1e-5, use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones, scale_offset: float = 0.0,
        rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        super().__init__(num_features, **options)
        self.epsilon, self.scale_offset = epsilon, scale_offset
        shape = self._parameter_shape()
        self.scale = learned(use_scale, scale_init, shape, self.param_dtype, rngs)
        self.bias = learned(use_bias, bias_init, shape, self.param_dtype, rngs)

    def _parameter_shape(self) -> tuple[int, ...]:
        return (self.num_features,)

    def _parameters(self, x: ArrayLike) -> tuple[jax.Array | None, jax.Array | None, dict[str, Any]]:
        """Scale, bias, and the keywords that every norm that divides takes."""
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        return scale, bias, {"epsilon": self.epsilon, "scale_offset": self.scale_offset, "dtype": dtype}
