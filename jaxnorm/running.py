"""RunningStats: the statistics that inference uses, and the ways to obtain them. State in, state out.

`update` is the usual moving average, which is a convention: it averages the variances within batches and forgets the
variance between them. `recalibrate` pools exactly.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Axes, check_averaging, check_ddof, check_number, is_complex, real, wide
from jaxnorm.moments import Moments, merge
from jaxnorm.rules import Statistics
from jaxnorm.rules.averaging import Rates, averaging_rates, step, unbiased


class RunningStats(NamedTuple):
    """Running mean and variance per feature: the state of a batch norm, an ordinary pytree.

    Args:
      mean: [*features], at least float32 always; its dtype never depends on the data's.
      var: [*features], real.
      count: [*features] float32, the number of updates that each feature received.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def init(cls, features: int | tuple[int, ...], dtype: DTypeLike = jnp.float32) -> "RunningStats":
        """Mean 0, variance 1, no update: normalizing by it changes nothing but epsilon.

        Args:
          features: number of features, or the shape of the kept axes.
          dtype: of the mean; at least float32. A complex dtype makes the state of complex data (the variance is real).

        Raises:
          TypeError: a dtype that would round the statistics, or holds no fractions.

        >>> RunningStats.init(2).var
        Array([1., 1.], dtype=float32)
        """
        dtype = jnp.dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.inexact) or wide(dtype) != dtype:
            raise TypeError(
                f"RunningStats.init: `dtype` must be floating and at least float32; got {dtype}. "
                "Statistics stay wide while x may be half precision."
            )
        return cls(jnp.zeros(features, dtype), jnp.ones(features, real(dtype)), jnp.zeros(features, jnp.float32))

    @classmethod
    def from_moments(cls, m: Moments, *, ddof: int = 0, count: float = 1) -> "RunningStats":
        """The state whose statistics are exactly these moments, for example those of a whole data set.

            mean = m.mean       var = m.var n / (n - ddof)

        Args:
          m: Moments of the kept axes.
          ddof: 0 stores the population variance (Flax, Keras), 1 the unbiased one (torch).
          count: how many updates it should pass for; matters to later cumulative or debiased updates.

        Returns:
          RunningStats. Features without enough values (n <= ddof) are as in `init`.

        Raises:
          TypeError, ValueError: a ddof that is not a Python int, or negative.

        >>> RunningStats.from_moments(Moments(jnp.array(5.0), jnp.array(10.0), jnp.array(5.0)), ddof=1).var
        Array(12.5, dtype=float32)
        """
        check_ddof("RunningStats.from_moments", ddof)
        mean, var = (a.astype(wide(a.dtype)) for a in (m.mean, m.var))
        enough = m.count > ddof
        return cls(
            jnp.where(enough, mean, 0),
            jnp.where(enough, unbiased(var, m.count, ddof), 1),
            jnp.where(enough, jnp.asarray(count, jnp.float32), 0),
        )

    def update(
        self, m: Moments, *, momentum: ArrayLike | None = 0.9, ddof: int = 0, debias: bool = False
    ) -> "RunningStats":
        """One step of the running average, by the moments of one batch.

            mean = w mean + (1 - w) m.mean          var = w var + (1 - w) m.var n / (n - ddof)

        with w = momentum; with `momentum=None` (cumulative: all updates weigh the same) w = (t - 1) / t at update t;
        with `debias`, 1 - w = (1 - momentum) / (1 - momentum^t): the state never contains its initial value.

        Args:
          m: Moments of the batch, of this state's shape.
          momentum: the weight of the past (Flax, Keras; torch's is 1 minus it), from 0 to 1, may be traced; or None.
          ddof: 1 stores the unbiased variance (torch), 0 the population variance (Flax, Keras, Haiku).
          debias: weight update t as above (Haiku's zero-debiasing; needs momentum < 1).

        Returns:
          RunningStats of the same shape and dtypes, through which no gradient flows. Features with n <= ddof keep
          every bit of their state.

        Raises:
          ValueError: shapes differ; momentum outside 0 to 1; debias with momentum None or 1; a negative ddof.
          TypeError: a ddof that is not a Python int.

        >>> batch = Moments(jnp.array(5.0), jnp.array(10.0), jnp.array(5.0))
        >>> stats = RunningStats.init(()).update(batch, momentum=0.5)
        >>> float(stats.mean), float(stats.var), float(stats.count)
        (2.5, 5.5, 1.0)

        Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1; Kingma & Ba 2015, arXiv:1412.6980, section 3
        (debiasing).
        """
        check_averaging("RunningStats.update", momentum, ddof, debias)
        if self.mean.shape != m.mean.shape:
            raise ValueError(
                f"RunningStats.update: the batch must have the state's features; got moments of shape {m.mean.shape}, "
                f"state of shape {self.mean.shape}. Take moments over every axis but the features'."
            )
        _same_kind("RunningStats.update", self, m)
        return updated(self, m, averaging_rates(momentum), ddof=ddof, debias=debias)

    def _no_arithmetic(self, other: object) -> NoReturn:
        raise TypeError("RunningStats: arithmetic on the tuple would concatenate or repeat it; use update or blend.")

    __add__ = __radd__ = __mul__ = __rmul__ = _no_arithmetic


def updated(
    stats: RunningStats,
    batch: Moments | Statistics,
    rates: Rates | None,
    *,
    ddof: int,
    debias: bool,
    axes: Axes = (),
    implementation: str | None = None,
) -> RunningStats:
    """`RunningStats.update` for checked arguments; by statistics, with the reduced `axes` kept, as good as by moments.

    What is compiled is `_updated`: a public name here would be a layer's in `capture`.
    """
    return _updated(stats, batch, rates, ddof=ddof, debias=debias, axes=axes, implementation=implementation)


@partial(jax.jit, static_argnames=("ddof", "debias", "axes", "implementation"))
def _updated(stats: RunningStats, batch: Any, rates: Rates | None, *, axes: Axes, **options: Any) -> RunningStats:
    if isinstance(batch, Moments):
        batch = Statistics(batch.mean, jnp.zeros_like(batch.mean), batch.var, batch.count)
    else:
        batch = Statistics(*(jnp.squeeze(a, axes) for a in batch))
    return RunningStats(*step(stats.mean, stats.var, stats.count, batch, rates, **options))


def _same_kind(function: str, stats: RunningStats, m: Moments) -> None:
    if is_complex(m.mean.dtype) and not is_complex(stats.mean.dtype):
        raise TypeError(
            f"{function}: complex moments need a complex state; got moments of {m.mean.dtype}, state of "
            f"{stats.mean.dtype}. Use RunningStats.init(features, dtype=...)."
        )


def blend(stats: RunningStats, m: Moments, *, prior_count: ArrayLike) -> RunningStats:
    """Source statistics moved towards those of test data, by how much test data there is.

        w = prior_count / (prior_count + n)         mean = w mean + (1 - w) m.mean      var = w var + (1 - w) m.var

    Args:
      stats: the source's RunningStats.
      m: Moments of the test data, same shape; n is `m.count`.
      prior_count: how many values the source statistics are worth, in the unit of `m.count` (values per feature: for
        images height x width to the sample). 0 uses the test data alone, a large number the source alone.

    Returns:
      RunningStats with the same count. Features without test values keep their state. Gradients flow.

    Raises:
      ValueError: shapes differ; a negative prior_count.

    >>> target = Moments(jnp.array(5.0), jnp.array(10.0), jnp.array(5.0))
    >>> blend(RunningStats.init(()), target, prior_count=15).mean
    Array(1.25, dtype=float32)

    Reference: Schneider et al. 2020, arXiv:2006.16971, eq. 2.
    """
    if stats.mean.shape != m.mean.shape:
        raise ValueError(
            f"blend: both must describe the same features; got stats of shape {stats.mean.shape}, moments of shape "
            f"{m.mean.shape}. Take moments over every axis but the features'."
        )
    _same_kind("blend", stats, m)
    check_number("blend", "prior_count", prior_count, "must not be negative", "It is a number of values.")
    prior = jnp.asarray(prior_count, jnp.float32)
    weight = jnp.where(m.count > 0, m.count / jnp.maximum(prior + m.count, 1), 0)

    def mix(old: jax.Array, new: jax.Array) -> jax.Array:
        w = weight.astype(old.dtype)
        return jnp.where(m.count > 0, (1 - w) * old + w * new.astype(old.dtype), old)

    return RunningStats(mix(stats.mean, m.mean), mix(stats.var, m.var), stats.count)


def recalibrate(moments_fn: Callable[[Any], Any], batches: Iterable[Any]) -> Any:
    """The exact statistics of a whole data set: the moments of every batch, merged.

    Unlike a running average it forgets no batch and counts unequal batches by their size ("precise" batch norm). For
    whole Flax models: `jaxnorm.linen.recalibrate` and `jaxnorm.nnx.recalibrate`.

    Args:
      moments_fn: batch -> a Moments, or any tree of them (one for each norm of a model). Jit it.
      batches: any iterable; wrap it in a progress bar if it is long.

    Returns:
      The tree with every Moments pooled over all batches; turn each into a state by `RunningStats.from_moments`.

    Raises:
      ValueError: no batch at all, or a tree that changes between batches.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> batches = [jnp.array([[1.0], [4.0]]), jnp.array([[7.0], [10.0], [3.0]])]
      >>> jn.RunningStats.from_moments(jn.recalibrate(lambda batch: jn.moments(batch, 0), batches)).var
      Array([10.], dtype=float32)

    Reference: Wu & Johnson 2021, arXiv:2105.07576, section 3 (PreciseBN); pooling as `merge`.
    """
    return pool(moments_fn, batches)[0]


def pool(moments_fn: Callable[[Any], Any], batches: Iterable[Any]) -> tuple[Any, int]:
    """What `recalibrate` returns, and how many batches there were."""
    pooled, structure, seen = None, None, 0
    for batch in batches:
        part, seen = moments_fn(batch), seen + 1
        strangers = [
            type(leaf).__name__ for leaf in jax.tree.leaves(part, is_leaf=_is_moments) if not _is_moments(leaf)
        ]
        if strangers:
            raise TypeError(
                f"recalibrate: `moments_fn` must return Moments, or a tree of them; got a leaf of type {strangers[0]}. "
                "Return moments(x, axis), not statistics of another kind."
            )
        if pooled is None:
            pooled, structure = part, jax.tree.structure(part)
        elif jax.tree.structure(part) != structure:
            raise ValueError(
                f"recalibrate: `moments_fn` must return the same tree for every batch; got {jax.tree.structure(part)} "
                f"after {structure}. Return every norm's moments each time."
            )
        else:
            pooled = _merge_trees(pooled, part)
    if pooled is None:
        raise ValueError("recalibrate: `batches` must hold at least one batch; got none. An iterator may be used up.")
    return pooled, seen


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


@jax.jit  # here, so that recalibrating again compiles nothing
def _merge_trees(a: Any, b: Any) -> Any:
    return jax.tree.map(merge, a, b, is_leaf=_is_moments)
