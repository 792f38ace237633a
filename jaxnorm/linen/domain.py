"""Batch norm with statistics for each domain."""

import flax.linen as nn
from jax.typing import ArrayLike

from jaxnorm.arguments import Call
from jaxnorm.linen.parameters import canonical, parameters
from jaxnorm.linen.running import ScaledRunningNorm, running
from jaxnorm.norms.domain import domain_batch_norm, which_domain


class DomainBatchNorm(ScaledRunningNorm):
    """Batch norm by the statistics of one domain at a time; see `jaxnorm.domain_batch_norm`.

    Args (beyond ScaledRunningNorm's, see `jaxnorm.linen.running`):
      num_domains: `batch_stats` has this leading axis.
      shared: one scale and bias for all domains (domain-specific batch norm has its own: False, as AdvProp).
      ddof: 1 keeps the unbiased variance.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.DomainBatchNorm(num_domains=2, use_running_average=False, momentum=0.9)
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> variables = norm.init(jax.random.key(0), x, 0)
      >>> norm.apply(variables, x, 1, mutable="batch_stats")[1]["batch_stats"]["mean"][:, 0]
      Array([0. , 0.5], dtype=float32)
    """

    num_domains: int = 2
    shared: bool = True
    ddof: int = 0

    @nn.compact
    def __call__(self, x, domain: ArrayLike, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Normalize x, all of it from `domain` (an integer, may be traced); without running averages, update its."""
        features = canonical(x.ndim, self.axis)
        leading = () if self.shared else (self.num_domains,)
        scale, bias, dtype = parameters(self, x, features, self.use_bias, leading)
        if not self.shared:
            which = which_domain(Call("DomainBatchNorm", x), domain, self.num_domains)
            scale, bias = (None if p is None else p[which] for p in (scale, bias))
        state = running(self, self._training(use_running_average), (self.num_domains, *(x.shape[a] for a in features)))
        y, stats = domain_batch_norm(
            x,
            state.stats,
            domain,
            scale,
            bias,
            training=state.training,
            epsilon=self.epsilon,
            ddof=self.ddof,
            scale_offset=self.scale_offset,
            dtype=dtype,
            **self._keywords(mask),
        )
        state.keep(stats)
        return y
