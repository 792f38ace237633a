"""Flax Linen modules: `flax.linen`'s norms with jaxnorm behind them. Parameters and names; no arithmetic.

Change the import and keep the checkpoint: constructor arguments, call arguments, variable collections, names, shapes,
dtypes, initializers and output dtypes are Flax's. Arguments beyond Flax's come after them and default to its behaviour.

Different on purpose, because it is wrong in Flax:

- The variance is always the stable one. `use_fast_variance` is accepted, so that code keeps running, and has no effect:
  the fast one loses all digits where a mean is large.
- Masked entries are not read and give 0; Flax normalizes them, and lets a NaN there reach the gradient of valid ones.
- Devices (`axis_name`) are weighted by how many values they counted.
- A batch without a valid value leaves the running statistics as they were; in Flax they become NaN.
- One value per feature in training, or per group or instance, raises a ValueError, except while initializing.
- Statistics are computed and kept in at least float32, also with `force_float32_reductions=False`.
- Complex input needs complex statistics (a complex `batch_stats`).
- `GroupNorm` takes any `feature_axis`, and masks that broadcast.
- `SpectralNorm` does not iterate at inference, where Flax makes a new estimate in every call; what it remembers is kept
  in at least float32.

The rest of the family has modules of its own design, with Flax's words for what Flax has words for: `axis`, `mask` and
`use_running_average` in norms of a batch, `scale` and `bias` among the parameters. While initializing they measure
nothing and keep nothing. `recalibrate` measures the running statistics of a whole model again.
"""

try:
    import flax  # noqa: F401
except ImportError as error:
    raise ImportError("jaxnorm.linen needs flax: pip install 'jaxnorm[flax]'") from error

from jaxnorm.linen.adaptive import AdaptiveInstanceNorm, AdaptiveLayerNorm, ConditionalBatchNorm
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.center import MeanOnlyBatchNorm
from jaxnorm.linen.domain import DomainBatchNorm
from jaxnorm.linen.dynamic import DynamicErf, DynamicTanh
from jaxnorm.linen.evo import EvoNormB0, EvoNormS0
from jaxnorm.linen.group import GroupNorm, InstanceNorm
from jaxnorm.linen.layer import LayerNorm, RMSNorm
from jaxnorm.linen.recalibrate import recalibrate
from jaxnorm.linen.renorm import BatchRenorm
from jaxnorm.linen.residual import AddLayerNorm, AddRMSNorm
from jaxnorm.linen.response import FilterResponseNorm, GlobalResponseNorm, LocalResponseNorm
from jaxnorm.linen.unit import LpNormalize
from jaxnorm.linen.weight import SpectralNorm, WeightNorm, WeightStandardize
from jaxnorm.linen.whiten import Whiten

__all__ = [
    "AdaptiveInstanceNorm",
    "AdaptiveLayerNorm",
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchNorm",
    "BatchRenorm",
    "ConditionalBatchNorm",
    "DomainBatchNorm",
    "DynamicErf",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalResponseNorm",
    "LpNormalize",
    "MeanOnlyBatchNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardize",
    "Whiten",
    "recalibrate",
]
