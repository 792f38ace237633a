"""Whitening with a running covariance."""

from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxnorm.nnx.running import ScaledRunningNorm, keep, read
from jaxnorm.norms.whiten import WhiteningStats, whiten


class Whiten(ScaledRunningNorm):
    """Decorrelated batch norm (Huang et al. 2018, arXiv:1804.08450): whitening over batch and space.

    Args (beyond ScaledRunningNorm's, which `options` are; see `jaxnorm.nnx.running`):
      method: "zca", "newton" or "cholesky"; see `jaxnorm.whiten`.
      num_groups, group_size: at most one of them; features are whitened in such groups.
      steps: Newton iterations.

    Variables: `mean` and `cov`; with `debias` or `momentum=None` also `count`.

    >>> import jax.numpy as jnp
    >>> x = jax.random.normal(jax.random.key(0), (100, 2)) @ jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> y = Whiten(2, rngs=nnx.Rngs(0))(x)
    >>> jnp.abs(y.T @ y / 100).round(3)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    def __init__(
        self, num_features: int, *,
        method: str = "zca", num_groups: int | None = None, group_size: int | None = None, steps: int = 5,
        rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        self.method, self.num_groups, self.group_size, self.steps = method, num_groups, group_size, steps
        super().__init__(num_features, rngs=rngs, **options)

    def _initial(self) -> WhiteningStats:
        return WhiteningStats.init(self.num_features, num_groups=self.num_groups, group_size=self.group_size)

    def __call__(self, x, use_running_average: bool | None = None, *, mask: ArrayLike | None = None) -> jax.Array:
        """Whiten x; without running averages, update them."""
        training = self._training(use_running_average)
        scale, bias, options = self._parameters(x)
        options |= {"num_groups": self.num_groups, "group_size": self.group_size}
        options |= {"training": training, "method": self.method, "steps": self.steps, **self._keywords(mask)}
        y, stats = whiten(x, read(self, self._initial()), scale, bias, **options)
        if training:
            keep(self, stats)
        return y
