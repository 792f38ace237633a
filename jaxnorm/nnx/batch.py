"""Batch norm: parameters, running statistics and when they are updated."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax.nn.initializers import ones, zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisName, IndexGroups
from jaxnorm.nnx.norm import NONE, Metadata, Norm, where_of
from jaxnorm.nnx.running import keep, read, start
from jaxnorm.norms.batch import batch_norm
from jaxnorm.running import RunningStats


class BatchNorm(Norm):
    """Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167); arguments and variables as `flax.nnx.BatchNorm`.

    Args (beyond Flax's):
      momentum: the weight of the past; None averages all updates equally.
      scale_offset: added to scale in float32; 1.0 for parameters stored around zero.
      ghost_size: normalize ghost batches of this many rows each; inference ignores it.
      debias: update t weighs (1 - momentum) / (1 - momentum^t): the state never contains its initial value.
      ddof: 1 stores the unbiased variance (torch).
      frozen: always normalize by the running statistics and never update them; scale and bias still train. Also
        `nnx.view(model, frozen=True)`.

    Variables: Flax's; with `debias` or `momentum=None` also a BatchStat `count`, the updates that each feature had.

    Differs from Flax: stable variance; masks that NaN cannot pass, zeros at masked places; devices weighted by their
    valid values; an empty batch leaves the state alone; one value per feature in training is a ValueError; running
    statistics are never rounded to `dtype`, and must be complex where x is.

    >>> norm = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[2.0], [4.0], [6.0]])).round(4)[:, 0]
    Array([-1.2247,  0.    ,  1.2247], dtype=float32)
    >>> norm.mean[...]
    Array([0.4], dtype=float32)
    >>> norm.eval()
    >>> norm(jnp.array([[0.4]]))
    Array([[0.]], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        use_running_average: bool | None = False, axis: int = -1, momentum: float | None = 0.99,
        epsilon: float = 1e-5, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True, use_scale: bool = True,
        bias_init: Initializer = zeros, scale_init: Initializer = ones,
        axis_name: AxisName = None, axis_index_groups: IndexGroups | None = None,
        use_fast_variance: bool = True, promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs, bias_metadata: Metadata = NONE, scale_metadata: Metadata = NONE,
        scale_offset: float = 0.0, ghost_size: int | None = None, debias: bool = False, ddof: int = 0,
        frozen: bool = False,
    ):  # fmt: skip
        averages = debias or momentum is None
        self.mean, self.var, self.count = start(RunningStats.init(num_features), averages)
        self.scale = self._parameter(use_scale, scale_init, num_features, param_dtype, scale_metadata, rngs)
        self.bias = self._parameter(use_bias, bias_init, num_features, param_dtype, bias_metadata, rngs)
        self._options(epsilon, dtype, axis_name, axis_index_groups, use_fast_variance, promote_dtype, scale_offset)
        self.use_running_average, self.frozen = use_running_average, frozen
        self.axis, self.use_bias, self.use_scale = axis, use_bias, use_scale
        self.momentum, self.ghost_size, self.debias, self.ddof = momentum, ghost_size, debias, ddof

    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalize x by this batch and update the running statistics, or by those if `use_running_average`."""
        use_running_average = first_from(
            self.frozen or None,
            use_running_average,
            self.use_running_average,
            error_msg="BatchNorm: `use_running_average` must be given; got None. Pass it to the constructor or the "
            "call, or set it with model.train(), model.eval() or nnx.view.",
        )
        stats = read(self, RunningStats.init(self.num_features))
        # Flax promotes its statistics too; here they only have a say in the dtype of the rest.
        x, _, _, scale, bias = self._promote(x, self.mean, self.var, self.scale, self.bias)
        training = not use_running_average
        options = {"momentum": self.momentum, "ddof": self.ddof, "debias": self.debias, "ghost_size": self.ghost_size}
        options |= {"feature_axis": self.axis, "where": where_of(mask), "axis_index_groups": self._groups()}
        y, stats = batch_norm(x, stats, scale, bias, training=training, **options, **self._keywords(x, scale, bias))
        if training and stats is not None:
            keep(self, stats)
        return y

    def set_view(self, use_running_average: bool | None = None, frozen: bool | None = None):
        """What `nnx.view` may set; None leaves it as it is.

        Args:
          use_running_average: normalize by the running statistics instead of the batch's.
          frozen: the same, for good: `train()` does not end it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if frozen is not None:
            self.frozen = frozen
