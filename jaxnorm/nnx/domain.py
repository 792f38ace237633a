"""Batch norm with statistics for each domain."""

from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxnorm.arguments import Call
from jaxnorm.nnx.running import ScaledRunningNorm, keep, read
from jaxnorm.norms.domain import domain_batch_norm, which_domain
from jaxnorm.running import RunningStats


class DomainBatchNorm(ScaledRunningNorm):
    """Batch norm by the statistics of one domain at a time (Chang et al. 2019, arXiv:1906.03950; AdvProp).

    Args (beyond ScaledRunningNorm's, which `options` are; see `jaxnorm.nnx.running`):
      num_domains: the statistics have this leading axis.
      shared: one scale and bias for all domains; False: each has its own.
      ddof: 1 keeps the unbiased variance.

    >>> import jax.numpy as jnp
    >>> norm = DomainBatchNorm(1, 2, momentum=0.9, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.array([[1.0], [5.0], [9.0]]), 1)
    >>> norm.mean[:, 0]
    Array([0. , 0.5], dtype=float32)
    """

    def __init__(
        self, num_features: int, num_domains: int, *, shared: bool = True, ddof: int = 0, rngs: nnx.Rngs, **options: Any
    ):
        self.num_domains, self.shared, self.ddof = num_domains, shared, ddof
        super().__init__(num_features, rngs=rngs, **options)

    def _initial(self) -> RunningStats:
        return RunningStats.init((self.num_domains, self.num_features))

    def _parameter_shape(self) -> tuple[int, ...]:
        return (self.num_features,) if self.shared else (self.num_domains, self.num_features)

    def __call__(
        self, x, domain: ArrayLike, use_running_average: bool | None = None, *, mask: ArrayLike | None = None
    ) -> jax.Array:
        """Normalize x, all of it from `domain` (an integer, may be traced); without running averages, update its."""
        training = self._training(use_running_average)
        scale, bias, options = self._parameters(x)
        if not self.shared:
            which = which_domain(Call("DomainBatchNorm", x), domain, self.num_domains)
            scale, bias = (None if p is None else p[which] for p in (scale, bias))
        options |= {"training": training, "ddof": self.ddof, **self._keywords(mask)}
        y, stats = domain_batch_norm(x, read(self, self._initial()), domain, scale, bias, **options)
        if training:
            keep(self, stats)
        return y
