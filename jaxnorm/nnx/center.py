"""Mean-only batch norm: centred, and not divided."""

from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import zeros
from jax.typing import ArrayLike

from jaxnorm.nnx.norm import learned
from jaxnorm.nnx.running import RunningNorm, keep, read
from jaxnorm.norms.center import mean_only_batch_norm


class MeanOnlyBatchNorm(RunningNorm):
    """Mean-only batch norm (Salimans & Kingma 2016, arXiv:1602.07868), for layers under `WeightNorm`.

    Args (beyond RunningNorm's, which `options` are; see `jaxnorm.nnx.running`):
      use_bias, bias_init: of the parameter `bias`.
      ddof: 1 keeps the unbiased variance, which is kept up though y does not use it.

    >>> import jax.numpy as jnp
    >>> MeanOnlyBatchNorm(1, rngs=nnx.Rngs(0))(jnp.array([[1.0], [5.0], [9.0]]))[:, 0]
    Array([-4.,  0.,  4.], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        use_bias: bool = True, bias_init: Initializer = zeros, ddof: int = 0, rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        super().__init__(num_features, **options)
        self.ddof = ddof
        self.bias = learned(use_bias, bias_init, (num_features,), self.param_dtype, rngs)

    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None) -> jax.Array:
        """Centre x; without running averages, update them."""
        training = self._training(use_running_average)
        bias = None if self.bias is None else self.bias[...]
        dtype = dtypes.canonicalize_dtype(x, bias, dtype=self.dtype)
        options = {"training": training, "ddof": self.ddof, "dtype": dtype, **self._keywords(mask)}
        y, stats = mean_only_batch_norm(x, read(self, self._initial()), bias, **options)
        if training:
            keep(self, stats)
        return y
