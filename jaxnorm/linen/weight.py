"""Weight norm, standardization and spectral norm: wrappers that normalize the parameters of the layer inside."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax.nn import initializers
from jax.tree_util import keystr, tree_map_with_path
from jax.typing import DTypeLike

from jaxnorm.arguments import wide
from jaxnorm.linen.parameters import Axes, Initializer, canonical
from jaxnorm.norms.weight import SpectralState, initial_length, spectral_norm, weight_norm, weight_standardize


def _name(module: Any, path: Any) -> str:
    """What a parameter of the wrapped layer is called among the wrapper's own variables."""
    return f"{module.layer_instance.name}/{keystr(path[1:], simple=True, separator='/')}"


class WeightNorm(nn.Module):
    """Weights as direction times length, as `flax.linen.WeightNorm`; see `jaxnorm.weight_norm`.

    Beyond Flax:
      start_as_identity: the initial scale is the length of the initial weight, so that wrapping a layer changes
        nothing at first (torch); `scale_init` is not used. Flax's weights start at length 1.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> variables = jnl.WeightNorm(nn.Dense(3)).init(jax.random.key(0), jnp.ones((1, 4)))
      >>> jnp.linalg.norm(variables["params"]["layer_instance"]["kernel"], axis=0).round(4)
      Array([1., 1., 1.], dtype=float32)
      >>> variables["params"]["layer_instance/kernel/scale"].shape
      (3,)
    """

    layer_instance: nn.Module
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    feature_axes: Axes | None = -1
    variable_filter: Iterable[str] | None = frozenset({"kernel"})
    start_as_identity: bool = False

    @nn.compact
    def __call__(self, *args, **kwargs):
        """Call the layer with normalized weights; all arguments are the layer's."""
        if self.start_as_identity and not self.use_scale:
            raise ValueError("WeightNorm: `start_as_identity` needs a scale; got use_scale=False. Pass use_scale=True.")
        call = nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=lambda variables: tree_map_with_path(self._normalize, variables),
            init=self.is_initializing(),
        )
        return call(self.layer_instance)

    def _normalize(self, path, v):
        name = _name(self, path)
        if self.variable_filter and not any(part in name for part in self.variable_filter):
            return v
        features = () if self.feature_axes is None else canonical(v.ndim, self.feature_axes)
        others = tuple(a for a in range(v.ndim) if a not in features)
        scale = None
        if self.use_scale:
            shape, init = tuple(v.shape[a] for a in features), self.scale_init
            if self.start_as_identity:
                init = lambda key, shape, dtype: initial_length(v, others, self.epsilon).astype(dtype)
            scale = self.param(f"{name}/scale", init, shape, self.param_dtype)
        dtype = canonicalize_dtype(v, scale, dtype=self.dtype)
        v = v.astype(jnp.promote_types(v.dtype, dtype))  # so that nothing is rounded before the end
        return weight_norm(v, scale, axis=others, epsilon=self.epsilon).astype(dtype)


class WeightStandardize(nn.Module):
    """Weights with mean 0 and variance 1 over their fan-in, around any dense layer or convolution.

    See `jaxnorm.weight_standardize`. The wrapped layer keeps its parameters.

    Args:
      scaled: divide by the root of the fan-in too, and have a gain (scaled weight standardization, as in NFNets).
      use_gain, gain_init: a parameter `gain` per output; None has it with `scaled`.
      feature_axes: the outputs; all of them for a layer with several, as `DenseGeneral((2, 3))`: (-2, -1).
      variable_filter: parts of the names of parameters that are standardized.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> y, _ = jnl.WeightStandardize(nn.Dense(2), epsilon=0.0).init_with_output(jax.random.key(0), jnp.eye(4))
      >>> (y.mean(0) + 1).round(4), y.var(0).round(4)
      (Array([1., 1.], dtype=float32), Array([1., 1.], dtype=float32))
    """

    layer_instance: nn.Module
    epsilon: float = 1e-6
    scaled: bool = False
    use_gain: bool | None = None
    gain_init: Initializer = initializers.ones
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    feature_axes: Axes = -1
    variable_filter: Iterable[str] | None = frozenset({"kernel"})

    @nn.compact
    def __call__(self, *args, **kwargs):
        """Call the layer with standardized weights; all arguments are the layer's."""
        call = nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=lambda variables: tree_map_with_path(self._standardize, variables),
            init=self.is_initializing(),
        )
        return call(self.layer_instance)

    def _standardize(self, path, w):
        name = _name(self, path)
        if self.variable_filter and not any(part in name for part in self.variable_filter):
            return w
        features, gain = canonical(w.ndim, self.feature_axes), None
        if self.scaled if self.use_gain is None else self.use_gain:
            shape = tuple(w.shape[a] for a in features)
            gain = self.param(f"{name}/gain", self.gain_init, shape, self.param_dtype)
        others = tuple(a for a in range(w.ndim) if a not in features)
        dtype = canonicalize_dtype(w, gain, dtype=self.dtype)
        w = w.astype(jnp.promote_types(w.dtype, dtype))  # so that nothing is rounded before the end
        return weight_standardize(w, gain, axis=others, epsilon=self.epsilon, scaled=self.scaled).astype(dtype)


class SpectralNorm(nn.Module):
    """Weights divided by their largest singular value, as `flax.linen.SpectralNorm`; see `jaxnorm.spectral_norm`.

    Differs from Flax: with `update_stats=False` nothing is iterated, so that inference is one function of the
    variables; `u` and `sigma` are kept in at least float32; parameters with partitioning metadata may be wrapped.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnl
      >>> norm = jnl.SpectralNorm(nn.Dense(3), n_steps=20)
      >>> variables = norm.init(jax.random.key(0), jnp.ones((1, 4)), update_stats=False)
      >>> y, updated = norm.apply(variables, jnp.ones((1, 4)), update_stats=True, mutable="batch_stats")
      >>> sorted(updated["batch_stats"])
      ['layer_instance/kernel/sigma', 'layer_instance/kernel/u']
    """

    layer_instance: nn.Module
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"

    @nn.compact
    def __call__(self, *args, update_stats: bool, **kwargs):
        """Call the layer with normalized weights; all arguments but `update_stats` are the layer's.

        Args:
          update_stats: True (training) iterates and keeps the estimate; False uses it as it is.
        """
        call = nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=lambda variables: tree_map_with_path(
                lambda path, w: self._normalize(path, w, update_stats), variables
            ),
            init=self.is_initializing(),
            mutable=True,
        )
        return call(self.layer_instance)

    def _normalize(self, path, w, update: bool):
        w = jnp.asarray(w)
        if w.ndim <= 1 or self.n_steps < 1:
            return w
        name = _name(self, path)
        if w.ndim > 2 and self.error_on_non_matrix:
            todo = "Flatten it, or pass error_on_non_matrix=False, which treats it as [-1, features]."
            raise ValueError(f"SpectralNorm: {name} must be a matrix; got shape {w.shape}. {todo}")
        shape, kept = (1, w.shape[-1]), wide(self.param_dtype)

        def draw():  # in param_dtype, so that the numbers are Flax's
            return jax.random.normal(self.make_rng("params"), shape, self.param_dtype).astype(kept)

        u = self.variable(self.collection_name, f"{name}/u", draw)
        sigma = self.variable(self.collection_name, f"{name}/sigma", jnp.ones, (), kept)
        state = SpectralState(u.value[0].astype(kept), sigma.value.astype(kept))
        dtype = canonicalize_dtype(w, jnp.zeros((), self.param_dtype), dtype=self.dtype)
        w = w.astype(jnp.promote_types(w.dtype, dtype))
        w, state = spectral_norm(w, state, update=update, n_steps=self.n_steps, epsilon=self.epsilon)
        if update:
            u.value, sigma.value = state.u[None], state.sigma
        return w.astype(dtype)
