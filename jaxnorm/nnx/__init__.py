"""Norms as `flax.nnx` modules: change the import and the rest of the model stays, its checkpoints included.

Arguments, variables, initializers, random draws and output dtypes are those of Flax NNX; `rngs` and the rest are
described there. Here is what is more, and what is deliberately different. More, all off by default: `scale_offset`;
`feature_axis` of GroupNorm; `ghost_size`, `debias`, `ddof`, `momentum=None` and `frozen` of BatchNorm. Different:

- The variance is the stable one whatever `use_fast_variance` says. The argument is there for code written for Flax;
  E[x^2] - E[x]^2 subtracts two large numbers, and a norm that can return noise is not worth an option.
- A mask may be of any dtype (nonzero counts) and broadcasts to x, in every norm. What it hides is never read, so a NaN
  there touches nothing, and comes out as 0, in inference too; a set without any valid value gives 0, not NaN.
- Over `axis_name` devices are weighted by their valid values, not averaged. `axis_index_groups` works under `jax.vmap`
  and `jax.shard_map`.
- One value per set of numbers that shares statistics is a ValueError (BatchNorm in training, GroupNorm, InstanceNorm),
  where Flax returns the bias. LayerNorm and RMSNorm allow it.
- BatchNorm: an empty batch changes no bit of the running statistics; they are never rounded to `dtype`;
  complex input needs complex ones, where Flax drops the imaginary part of the mean.
- WeightNorm and SpectralNorm compute a new weight for each call; Flax puts it in the kernel's place. Scales are
  parameters (also in Flax from 0.12.12 on; constants before).
- SpectralNorm does not iterate at inference, and keeps what it remembers in at least float32.
- GroupNorm: custom `reduction_axes` give the statistics they name. Flax repeats them along axis 1.

The rest of the family has modules of its own design, with Flax's words for what Flax has words for: `axis`, `mask` and
`use_running_average` in norms of a batch, `scale` and `bias` among the parameters. `recalibrate` measures the running
statistics of a whole model again.

    >>> import jax.numpy as jnp
    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), LayerNorm(8, rngs=nnx.Rngs(0)))
    >>> model(jnp.arange(4.0)).shape
    (8,)
"""

try:
    from flax import nnx  # noqa: F401
except ImportError as error:
    raise ImportError("jaxnorm.nnx needs flax: pip install 'jaxnorm[flax]'") from error

from jaxnorm.nnx.adaptive import AdaptiveInstanceNorm, AdaptiveLayerNorm, ConditionalBatchNorm
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.center import MeanOnlyBatchNorm
from jaxnorm.nnx.domain import DomainBatchNorm
from jaxnorm.nnx.dynamic import DynamicErf, DynamicTanh
from jaxnorm.nnx.evo import EvoNormB0, EvoNormS0
from jaxnorm.nnx.group import GroupNorm, InstanceNorm
from jaxnorm.nnx.layer import LayerNorm, RMSNorm
from jaxnorm.nnx.recalibrate import recalibrate
from jaxnorm.nnx.renorm import BatchRenorm
from jaxnorm.nnx.residual import AddLayerNorm, AddRMSNorm
from jaxnorm.nnx.response import FilterResponseNorm, GlobalResponseNorm, LocalResponseNorm
from jaxnorm.nnx.unit import LpNormalize
from jaxnorm.nnx.weight import SpectralNorm, WeightNorm, WeightStandardize
from jaxnorm.nnx.whiten import Whiten

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
