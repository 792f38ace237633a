"""Adaptive norms: what is put back is computed from something else, a class, a time step, a text, another image."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import Call
from jaxnorm.linen.parameters import Axes, Initializer, mask_of
from jaxnorm.linen.running import RunningNorm, running
from jaxnorm.norms.adaptive import adaptive_instance_norm, parts_for
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.layer import layer_norm


class AdaptiveInstanceNorm(nn.Module):
    """The style's mean and deviation for the content's; see `jaxnorm.adaptive_instance_norm`. No parameters.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.linen as jnl
      >>> content, style = jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[[10.0], [30.0]]])
      >>> jnl.AdaptiveInstanceNorm(epsilon=0.0).apply({}, content, style)[0, :, 0].round(1)
      Array([ 7.8, 20. , 32.2], dtype=float32)
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    feature_axes: Axes = -1

    def __call__(self, content, style, *, mask: ArrayLike | None = None, style_mask: ArrayLike | None = None):
        """Give the content the style's statistics."""
        options: dict[str, Any] = {"where": mask_of(mask), "style_where": mask_of(style_mask)}
        options |= {"feature_axis": self.feature_axes, "epsilon": self.epsilon, "dtype": self.dtype}
        return adaptive_instance_norm(content, style, **options)


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose scale and bias are computed from a condition, zero at first (adaLN-Zero of DiT).

        scale, bias, gate = Dense(activation(condition))        y = (1 + scale) layer_norm(x) + bias

    Args:
      use_gate: return (y, gate); the block multiplies its output by the gate, and so starts as the identity.
      activation: applied to the condition.
      kernel_init, bias_init: of the dense layer `modulation`; zeros, so that y starts as a plain layer norm.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> x, condition = jnp.array([[[1.0, 5.0, 9.0]]]), jnp.ones((1, 2))
      >>> (y, gate), _ = jnl.AdaptiveLayerNorm(use_gate=True).init_with_output(jax.random.key(0), x, condition)
      >>> y.round(4), gate
      (Array([[[-1.2247,  0.    ,  1.2247]]], dtype=float32), Array([[[0., 0., 0.]]], dtype=float32))

    Reference: Peebles & Xie 2022, arXiv:2212.09748, section 3.2.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_gate: bool = False
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    kernel_init: Initializer = initializers.zeros
    bias_init: Initializer = initializers.zeros

    @nn.compact
    def __call__(self, x, condition, *, mask: ArrayLike | None = None):
        """Normalize x [batch, ..., features] by a condition [batch, c]; or with more of x's axes before c."""
        count = 3 if self.use_gate else 2
        options = {"param_dtype": self.param_dtype, "kernel_init": self.kernel_init, "bias_init": self.bias_init}
        dense = nn.Dense(count * x.shape[-1], dtype=self.dtype, name="modulation", **options)
        scale, bias, *gate = parts_for(
            "AdaptiveLayerNorm", x, dense(self.activation(jnp.asarray(condition))), count, -1
        )
        dtype = canonicalize_dtype(x, scale, dtype=self.dtype)
        options = {"epsilon": self.epsilon, "where": mask_of(mask), "scale_offset": 1.0, "dtype": dtype}
        y = layer_norm(x, scale, bias, **options)
        return (y, gate[0].astype(dtype)) if self.use_gate else y


class ConditionalBatchNorm(RunningNorm):
    """Batch norm whose scale and bias depend on a class, or on a vector.

    Args (beyond RunningNorm's, see `jaxnorm.linen.running`):
      num_classes: the condition is an integer per sample, with a row of the embedding `classes` each; None: it is a
        vector per sample, through a dense layer `modulation` without bias.
      epsilon: added to the variance inside the root.
      embedding_init: of either; zeros, so that it starts as a plain batch norm. Scales are stored around zero.
      use_bias: False conditions the scale alone.
      ddof: 1 keeps the unbiased variance.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.ConditionalBatchNorm(num_classes=10, use_running_average=False)
      >>> x, labels = jnp.array([[1.0], [5.0], [9.0]]), jnp.array([3, 0, 3])
      >>> variables = norm.init(jax.random.key(0), x, labels)
      >>> norm.apply(variables, x, labels, mutable="batch_stats")[0][:, 0].round(3)
      Array([-1.225,  0.   ,  1.225], dtype=float32)

    Reference: de Vries et al. 2017, arXiv:1707.00683, section 3; Dumoulin et al. 2016, arXiv:1610.07629, section 2.2.
    """

    num_classes: int | None = None
    epsilon: float = 1e-5
    embedding_init: Initializer = initializers.zeros
    use_bias: bool = True
    ddof: int = 0

    @nn.compact
    def __call__(self, x, condition, use_running_average: bool | None = None, *, mask: ArrayLike | None = None):
        """Normalize x by a condition [batch], or [batch, c]; without running averages, update them."""
        (feature,) = Call("ConditionalBatchNorm", x).one_axis(self.axis, "axis")
        count, features = (2 if self.use_bias else 1), x.shape[feature]
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.num_classes is None:
            if not jnp.issubdtype(jnp.asarray(condition).dtype, jnp.inexact):
                todo = "For labels give `num_classes`."
                got = f"dtype {jnp.asarray(condition).dtype}"
                raise TypeError(f"ConditionalBatchNorm: the condition must be vectors of floats; got {got}. {todo}")
            options |= {"use_bias": False, "kernel_init": self.embedding_init}
            modulation = nn.Dense(count * features, name="modulation", **options)
        else:
            options |= {"embedding_init": self.embedding_init}
            modulation = nn.Embed(self.num_classes, count * features, name="classes", **options)
        scale, *bias = parts_for("ConditionalBatchNorm", x, modulation(jnp.asarray(condition)), count, feature)
        state = running(self, self._training(use_running_average), (features,))
        y, stats = batch_norm(
            x,
            state.stats,
            scale,
            bias[0] if bias else None,
            training=state.training,
            epsilon=self.epsilon,
            ddof=self.ddof,
            scale_offset=1.0,
            dtype=canonicalize_dtype(x, scale, dtype=self.dtype),
            **self._keywords(mask),
        )
        state.keep(stats)
        return y
