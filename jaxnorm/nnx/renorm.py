"""Batch renorm: batch norm whose training output follows the running statistics."""

from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxnorm.nnx.running import ScaledRunningNorm, keep, read
from jaxnorm.norms.renorm import batch_renorm


class BatchRenorm(ScaledRunningNorm):
    """Batch renorm (Ioffe 2017, arXiv:1702.03275); see `jaxnorm.batch_renorm`. Called as `BatchNorm` is.

    Args (beyond ScaledRunningNorm's, which `options` are; see `jaxnorm.nnx.running`):
      r_max, d_max: limits of the correction; the call may give others, traced ones too, as a schedule does.
      ddof: 1 keeps the unbiased variance.

    >>> import jax.numpy as jnp
    >>> norm = BatchRenorm(1, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[1.0], [5.0], [9.0]]), r_max=1.0, d_max=0.0)[:, 0].round(3)  # batch norm, at first
    Array([-1.225,  0.   ,  1.225], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        r_max: float = 3.0, d_max: float = 5.0, epsilon: float = 1e-3, ddof: int = 0, rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        super().__init__(num_features, epsilon=epsilon, rngs=rngs, **options)
        self.r_max, self.d_max, self.ddof = r_max, d_max, ddof

    def __call__(
        self, x, use_running_average: bool | None = None, *,
        mask: ArrayLike | None = None, r_max: ArrayLike | None = None, d_max: ArrayLike | None = None,
    ) -> jax.Array:  # fmt: skip
        """Normalize x; without running averages, corrected towards them, and update them."""
        training = self._training(use_running_average)
        scale, bias, options = self._parameters(x)
        options |= {"r_max": self.r_max if r_max is None else r_max, "d_max": self.d_max if d_max is None else d_max}
        options |= {"training": training, "ddof": self.ddof, **self._keywords(mask)}
        y, stats = batch_renorm(x, read(self, self._initial()), scale, bias, **options)
        if training:
            keep(self, stats)
        return y
