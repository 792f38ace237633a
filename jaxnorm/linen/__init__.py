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
"""

try:
    import flax  # noqa: F401
except ImportError as error:
    raise ImportError("jaxnorm.linen needs flax: pip install 'jaxnorm[flax]'") from error

from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.group import GroupNorm, InstanceNorm
from jaxnorm.linen.layer import LayerNorm, RMSNorm
from jaxnorm.linen.weight import SpectralNorm, WeightNorm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "SpectralNorm", "WeightNorm"]
