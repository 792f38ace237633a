"""Batch norm with separate statistics for each domain: a stacked state, and an index that may be traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxnorm.arguments import Call
from jaxnorm.norms.batch import batch_norm
from jaxnorm.running import RunningStats


def domain_batch_norm(
    x: ArrayLike,
    stats: RunningStats,
    domain: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    **options: Any,
) -> tuple[jax.Array, RunningStats]:
    """Batch norm by the statistics of one domain: clean and adversarial images, source and target, left and right eye.

        y, stats[domain] = batch_norm(x, stats[domain], scale, bias, training)

    Args:
      x: a batch from one domain; any shape, floating or complex; integers become float32.
      stats: RunningStats whose arrays have a leading axis of domains: `RunningStats.init((domains, features))`.
      domain: which one, an integer from 0 to domains - 1; may be traced.
      scale, bias: as in `batch_norm`, shared by the domains; index them yourself to have one for each,
        `scale[domain]`.
      training: a Python bool; under jit a static argument.
      options: the other keywords of `batch_norm`, with their defaults there.

    Returns:
      (y, stats): y shaped like x; the whole stacked state, in training with this domain's part updated, every bit of
      the others as it was.

    Raises:
      ValueError: a state without a leading axis of domains; a domain outside it, where its value is known (a traced
        one must be right); and as `batch_norm`.
      TypeError: a domain that is not an integer; and as `batch_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> stats = jn.RunningStats.init((2, 1))
      >>> x = jnp.array([[1.0], [5.0], [9.0]])
      >>> y, stats = jn.domain_batch_norm(x, stats, 1, training=True)
      >>> stats.mean[:, 0]
      Array([0. , 0.5], dtype=float32)

    Reference: Xie et al. 2020, arXiv:1911.09665, section 4; Chang et al. 2019, arXiv:1906.03950, section 3.2.
    """
    call = Call("domain_batch_norm", x)
    if not isinstance(stats, RunningStats):
        todo = "Start from RunningStats.init((domains, features))."
        call.fail("`stats` must be a RunningStats of all domains", type(stats).__name__, todo, TypeError)
    shapes = {name: np.shape(value) for name, value in stats._asdict().items()}
    if not all(shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        todo = "Use RunningStats.init((domains, features))."
        call.fail("`stats` must have a leading axis of domains", f"shapes {shapes}", todo)
    domain = which_domain(call, domain, shapes["mean"][0])
    y, new = batch_norm(x, jax.tree.map(lambda a: a[domain], stats), scale, bias, training=training, **options)
    if not training:
        return y, stats
    return y, jax.tree.map(lambda old, part: old.at[domain].set(part), stats, new)


def which_domain(call: Call, domain: ArrayLike, domains: int) -> jax.Array:
    """The index, checked as far as it is known."""
    dtype = getattr(domain, "dtype", None)
    if not jnp.issubdtype(type(domain) if dtype is None else dtype, jnp.integer):
        got = type(domain).__name__ if dtype is None else f"dtype {dtype}"
        call.fail("`domain` must be an integer", got, "It indexes the state.", TypeError)
    domain = jnp.asarray(domain)
    if domain.ndim:
        todo = "A batch belongs to one domain: split it, or use jax.vmap over batches."
        call.fail("`domain` must be one number", f"shape {domain.shape}", todo)
    if not isinstance(domain, Tracer) and not 0 <= int(domain) < domains:
        call.fail(f"`domain` must be from 0 to {domains - 1}", f"domain={int(domain)}", "Count domains from 0.")
    return domain
