"""Adaptive norms: what is put back is computed from something else, a class, a time step, a text, another image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax.nn.initializers import zeros
from jax.typing import ArrayLike, DTypeLike

from jaxnorm.arguments import AxisLike, Call
from jaxnorm.nnx.norm import where_of
from jaxnorm.nnx.running import RunningNorm, keep, read
from jaxnorm.norms.adaptive import adaptive_instance_norm, parts_for
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.layer import layer_norm


class AdaptiveInstanceNorm(nnx.Module):
    """The style's mean and deviation for the content's (Huang & Belongie 2017, arXiv:1703.06868). No parameters.

    >>> content, style = jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[[10.0], [30.0]]])
    >>> AdaptiveInstanceNorm(epsilon=0.0)(content, style)[0, :, 0].round(1)
    Array([ 7.8, 20. , 32.2], dtype=float32)
    """

    def __init__(self, *, epsilon: float = 1e-5, dtype: DTypeLike | None = None, feature_axes: AxisLike = -1):
        self.epsilon, self.dtype, self.feature_axes = epsilon, dtype, feature_axes

    def __call__(
        self, content, style, *, mask: ArrayLike | None = None, style_mask: ArrayLike | None = None
    ) -> jax.Array:
        """Give the content the style's statistics."""
        options: dict[str, Any] = {"where": where_of(mask), "style_where": where_of(style_mask)}
        options |= {"feature_axis": self.feature_axes, "epsilon": self.epsilon, "dtype": self.dtype}
        return adaptive_instance_norm(content, style, **options)


class AdaptiveLayerNorm(nnx.Module):
    """Layer norm whose scale and bias are computed from a condition, zero at first (adaLN-Zero of DiT).

        scale, bias, gate = Linear(activation(condition))        y = (1 + scale) layer_norm(x) + bias

    Args:
      num_features: the size of x's last axis.
      condition_features: the size of the condition's last axis.
      use_gate: return (y, gate); the block multiplies its output by the gate, and so starts as the identity.
      activation: applied to the condition.
      kernel_init, bias_init: of the linear layer `modulation`; zeros, so that y starts as a plain layer norm.

    >>> norm = AdaptiveLayerNorm(3, 2, use_gate=True, rngs=nnx.Rngs(0))
    >>> y, gate = norm(jnp.array([[[1.0, 5.0, 9.0]]]), jnp.ones((1, 2)))
    >>> y.round(4), gate
    (Array([[[-1.2247,  0.    ,  1.2247]]], dtype=float32), Array([[[0., 0., 0.]]], dtype=float32))

    Reference: Peebles & Xie 2022, arXiv:2212.09748, section 3.2.
    """

    def __init__(
        self, num_features: int, condition_features: int, *,
        epsilon: float = 1e-6, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        use_gate: bool = False, activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        kernel_init: Initializer = zeros, bias_init: Initializer = zeros, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.epsilon, self.dtype, self.use_gate, self.activation = epsilon, dtype, use_gate, activation
        options = {"param_dtype": param_dtype, "kernel_init": kernel_init, "bias_init": bias_init, "rngs": rngs}
        self.modulation = nnx.Linear(condition_features, (3 if use_gate else 2) * num_features, dtype=dtype, **options)

    def __call__(self, x, condition, *, mask: ArrayLike | None = None):
        """Normalize x [batch, ..., features] by a condition [batch, c]; or with more of x's axes before c."""
        modulation = self.modulation(self.activation(jnp.asarray(condition)))
        scale, bias, *gate = parts_for("AdaptiveLayerNorm", x, modulation, 3 if self.use_gate else 2, -1)
        dtype = dtypes.canonicalize_dtype(x, scale, dtype=self.dtype)
        options = {"epsilon": self.epsilon, "where": where_of(mask), "scale_offset": 1.0, "dtype": dtype}
        y = layer_norm(x, scale, bias, **options)
        return (y, gate[0].astype(dtype)) if self.use_gate else y


class ConditionalBatchNorm(RunningNorm):
    """Batch norm whose scale and bias depend on a class, or on a vector.

    Args (beyond RunningNorm's, which `options` are; see `jaxnorm.nnx.running`):
      num_classes: the condition is an integer per sample, with a row of the embedding `classes` each.
      condition_features: instead, it is a vector of this size per sample, through a linear layer `modulation` without
        bias. Exactly one of the two.
      epsilon: added to the variance inside the root.
      embedding_init: of either; zeros, so that it starts as a plain batch norm. Scales are stored around zero.
      use_bias: False conditions the scale alone.
      ddof: 1 keeps the unbiased variance.

    >>> norm = ConditionalBatchNorm(1, num_classes=10, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([[1.0], [5.0], [9.0]]), jnp.array([3, 0, 3]))[:, 0].round(3)
    Array([-1.225,  0.   ,  1.225], dtype=float32)

    Reference: de Vries et al. 2017, arXiv:1707.00683, section 3; Dumoulin et al. 2016, arXiv:1610.07629, section 2.2.
    """

    def __init__(
        self, num_features: int, *,
        num_classes: int | None = None, condition_features: int | None = None, epsilon: float = 1e-5,
        embedding_init: Initializer = zeros, use_bias: bool = True, ddof: int = 0, rngs: nnx.Rngs, **options: Any,
    ):  # fmt: skip
        super().__init__(num_features, **options)
        self.epsilon, self.use_bias, self.ddof = epsilon, use_bias, ddof
        width = (2 if use_bias else 1) * num_features
        dtypes_of: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if (num_classes is None) == (condition_features is None):
            got = f"num_classes={num_classes}, condition_features={condition_features}"
            todo = "A condition is a class or a vector."
            message = (
                f"ConditionalBatchNorm: give exactly one of `num_classes` and `condition_features`; got {got}. {todo}"
            )
            raise ValueError(message)
        if condition_features is not None:
            dtypes_of |= {"use_bias": False, "kernel_init": embedding_init}
            self.modulation = nnx.Linear(condition_features, width, rngs=rngs, **dtypes_of)
        elif num_classes is not None:
            self.classes = nnx.Embed(num_classes, width, embedding_init=embedding_init, rngs=rngs, **dtypes_of)

    def __call__(
        self, x, condition, use_running_average: bool | None = None, *, mask: ArrayLike | None = None
    ) -> jax.Array:
        """Normalize x by a condition [batch], or [batch, c]; without running averages, update them."""
        training = self._training(use_running_average)
        (feature,) = Call("ConditionalBatchNorm", x).one_axis(self.axis, "axis")
        modulation = (self.classes if hasattr(self, "classes") else self.modulation)(jnp.asarray(condition))
        scale, *bias = parts_for("ConditionalBatchNorm", x, modulation, 2 if self.use_bias else 1, feature)
        options = {"epsilon": self.epsilon, "ddof": self.ddof, "scale_offset": 1.0, **self._keywords(mask)}
        options |= {"training": training, "dtype": dtypes.canonicalize_dtype(x, scale, dtype=self.dtype)}
        y, stats = batch_norm(x, read(self, self._initial()), scale, bias[0] if bias else None, **options)
        if training:
            keep(self, stats)
        return y
