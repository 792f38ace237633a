"""Weight norm, standardization, spectral norm: wrappers that call a layer with such weights and leave its own alone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax.nn.initializers import normal, ones
from jax.typing import DTypeLike

from jaxnorm.arguments import Axes, AxisLike, wide
from jaxnorm.norms.weight import SpectralState, initial_length, spectral_norm, weight_norm, weight_standardize

Path = tuple[Any, ...]


def _parameters(layer: nnx.Module) -> list[tuple[Path, nnx.Variable]]:
    return list(nnx.to_flat_state(nnx.state(layer, nnx.Param)))


def _call_with(layer: nnx.Module, weights: Mapping[Path, jax.Array], *args, **kwargs):
    """Call the layer with these weights in place of its own, which it has back when the call ends."""
    own = [(path, v, v[...]) for path, v in _parameters(layer) if path in weights]
    try:
        for path, v, _ in own:
            v.set_value(weights[path])
    except TraceContextError:  # a model that a gradient closes over cannot be written to; a copy of it can
        graph, state = nnx.split(layer)
        given = {path: v.replace(weights[path]) if path in weights else v for path, v in nnx.to_flat_state(state)}
        return nnx.merge(graph, nnx.from_flat_state(given.items()))(*args, **kwargs)
    try:
        return layer(*args, **kwargs)
    finally:
        for _, v, value in own:
            v.set_value(value)


def _known(wrapper: str, store: Mapping[Path, Any], path: Path, wrapped: Path) -> Any:
    if path not in store:
        todo = "Wrap a layer whose parameters stay the same."
        raise RuntimeError(f"{wrapper}: parameters must be those it was made with; got a new one, {wrapped}. {todo}")
    return store[path]


def _axes(wrapper: str, v: jax.Array, axes: AxisLike) -> tuple[Axes, Axes]:
    """The axes of the outputs, and those of the fan-in."""
    features = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -v.ndim <= a < v.ndim for a in features):
        todo = "Axes count from 0, or back from -1."
        raise ValueError(f"{wrapper}: `feature_axes` must lie within {v.ndim} dimensions; got {features}. {todo}")
    features = tuple(sorted({a % v.ndim for a in features}))
    return features, tuple(a for a in range(v.ndim) if a not in features)


class WeightNorm(nnx.Module):
    """Weights as direction times length (Salimans & Kingma 2016, arXiv:1602.07868); arguments as `flax.nnx.WeightNorm`.

    Args (beyond Flax's):
      start_as_identity: the initial scale is the length of the initial weight, so that wrapping a layer changes nothing
        at first (torch); `scale_init` is not used. Flax's weights start at length 1.

    Variables: those of the layer, and in `scales` a Param for each normalized weight, as in Flax 0.12.12 (before, they
    were constants that do not train).

    Differs from Flax, which puts the normalized weight in the kernel's place at each call: here the kernel is the
    parameter that trains, and the layer is called with a weight made from it. Scales have `param_dtype`, which Flax
    does not use.

    >>> layer = WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    >>> jnp.linalg.norm(layer(jnp.eye(4)), axis=0).round(4)
    Array([1., 1., 1.], dtype=float32)
    >>> WeightNorm(layer.layer_instance, start_as_identity=True, rngs=nnx.Rngs(1)).scales["kernel",].shape
    (3,)
    """

    def __init__(
        self, layer_instance: nnx.Module, *,
        feature_axes: AxisLike | None = -1, use_scale: bool = True, scale_init: Initializer = ones,
        epsilon: float = 1e-12, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        variable_filter: nnx.filterlib.Filter = nnx.PathContains("kernel"),  # noqa: B008
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype, rngs: nnx.Rngs,
        start_as_identity: bool = False,
    ):  # fmt: skip
        if start_as_identity and not use_scale:
            raise ValueError("WeightNorm: `start_as_identity` needs a scale; got use_scale=False. Pass use_scale=True.")
        self.layer_instance = layer_instance
        self.feature_axes = () if feature_axes is None else feature_axes
        self.use_scale, self.scale_init, self.start_as_identity = use_scale, scale_init, start_as_identity
        self.epsilon, self.dtype, self.param_dtype = epsilon, dtype, param_dtype
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype
        wanted = [(path, v) for path, v in _parameters(layer_instance) if use_scale and self.variable_filter(path, v)]
        scales = {path: nnx.Param(self._initial(v[...], i, rngs)) for i, (path, v) in enumerate(wanted)}
        self.scales = nnx.data(scales) if use_scale else nnx.data(None)

    def __call__(self, x, *args, **kwargs):
        """Call the layer with normalized weights; all arguments are the layer's."""
        chosen = [(path, v[...]) for path, v in _parameters(self.layer_instance) if self.variable_filter(path, v)]
        weights = {path: self._normalize(path, v) for path, v in chosen}
        return _call_with(self.layer_instance, weights, x, *args, **kwargs)

    def _initial(self, v: jax.Array, number: int, rngs: nnx.Rngs) -> jax.Array:
        features, others = _axes("WeightNorm", v, self.feature_axes)
        if self.start_as_identity:
            return initial_length(v, others, self.epsilon).astype(self.param_dtype)
        # Flax draws nothing here. A key folded out of the stream leaves the stream, and all later draws, as in Flax.
        stream = rngs.params
        key = jax.random.fold_in(jax.random.fold_in(stream.key[...], stream.count[...]), number)
        return self.scale_init(key, tuple(v.shape[a] for a in features), self.param_dtype)

    def _normalize(self, path: Path, v: jax.Array) -> jax.Array:
        scale = _known("WeightNorm", self.scales, path, path)[...] if self.scales is not None else None
        dtype = dtypes.canonicalize_dtype(v, scale, dtype=self.dtype)
        v = v.astype(jnp.promote_types(v.dtype, dtype))  # so that nothing is rounded before the end
        axis = _axes("WeightNorm", v, self.feature_axes)[1]
        return weight_norm(v, scale, axis=axis, epsilon=self.epsilon).astype(dtype)


class WeightStandardize(nnx.Module):
    """Weights with mean 0 and variance 1 over their fan-in (Qiao et al. 2019, arXiv:1903.10520), around any layer.

    See `jaxnorm.weight_standardize`. The wrapped layer keeps its parameters.

    Args:
      scaled: divide by the root of the fan-in too, and have a gain (Brock et al. 2021, arXiv:2101.08692).
      use_gain, gain_init: in `gains` a Param per output of each weight; None has it with `scaled`.
      feature_axes: the outputs; all of them for a layer with several, as `DenseGeneral((2, 3))`: (-2, -1).
      variable_filter: which parameters are standardized.

    >>> layer = WeightStandardize(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), epsilon=0.0, rngs=nnx.Rngs(1))
    >>> y = layer(jnp.eye(4))
    >>> (y.mean(0) + 1).round(4), y.var(0).round(4)
    (Array([1., 1.], dtype=float32), Array([1., 1.], dtype=float32))
    """

    def __init__(
        self, layer_instance: nnx.Module, *,
        epsilon: float = 1e-6, scaled: bool = False, use_gain: bool | None = None, gain_init: Initializer = ones,
        dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32, feature_axes: AxisLike = -1,
        variable_filter: nnx.filterlib.Filter = nnx.PathContains("kernel"), rngs: nnx.Rngs,  # noqa: B008
    ):  # fmt: skip
        self.layer_instance, self.epsilon, self.scaled, self.dtype = layer_instance, epsilon, scaled, dtype
        self.feature_axes = feature_axes
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        use_gain = scaled if use_gain is None else use_gain
        shape = lambda v: tuple(v.shape[a] for a in _axes("WeightStandardize", v, feature_axes)[0])
        gains = {
            path: nnx.Param(gain_init(rngs.params(), shape(v), param_dtype))
            for path, v in _parameters(layer_instance)
            if use_gain and self.variable_filter(path, v)
        }
        self.gains = nnx.data(gains) if use_gain else nnx.data(None)

    def __call__(self, x, *args, **kwargs):
        """Call the layer with standardized weights; all arguments are the layer's."""
        chosen = [(path, v[...]) for path, v in _parameters(self.layer_instance) if self.variable_filter(path, v)]
        weights = {path: self._standardize(path, v) for path, v in chosen}
        return _call_with(self.layer_instance, weights, x, *args, **kwargs)

    def _standardize(self, path: Path, w: jax.Array) -> jax.Array:
        gain = None if self.gains is None else _known("WeightStandardize", self.gains, path, path)[...]
        axis = _axes("WeightStandardize", w, self.feature_axes)[1]
        dtype = dtypes.canonicalize_dtype(w, gain, dtype=self.dtype)
        w = w.astype(jnp.promote_types(w.dtype, dtype))  # so that nothing is rounded before the end
        return weight_standardize(w, gain, axis=axis, epsilon=self.epsilon, scaled=self.scaled).astype(dtype)


class SpectralNorm(nnx.Module):
    """Weights divided by their largest singular value (Miyato et al. 2018, arXiv:1802.05957), as in Flax NNX.

    Variables: those of the layer, and in `batch_stats` a BatchStat `u` [1, features] and `sigma` [] for each weight.

    Differs from Flax: the kernel is not overwritten; without `update_stats` nothing is iterated, so that inference is
    one function of the variables; `u` and `sigma` are kept in at least float32.

    >>> layer = SpectralNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), n_steps=50, rngs=nnx.Rngs(1))
    >>> jnp.linalg.norm(layer(jnp.eye(4)), ord=2).round(4)
    Array(1., dtype=float32)
    >>> layer.eval()  # from here on nothing is updated
    """

    def __init__(
        self, layer_instance: nnx.Module, *,
        n_steps: int = 1, epsilon: float = 1e-12, dtype: DTypeLike | None = None, param_dtype: DTypeLike = jnp.float32,
        error_on_non_matrix: bool = False, update_stats: bool = True, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.layer_instance = layer_instance
        self.n_steps, self.epsilon, self.dtype, self.param_dtype = n_steps, epsilon, dtype, param_dtype
        self.error_on_non_matrix = error_on_non_matrix
        self.use_running_average = not update_stats  # the name that train() and eval() set
        stats: dict[Path, nnx.BatchStat] = {}
        for path, w in self._matrices():
            u = normal()(rngs.params(), (1, w.shape[-1]), param_dtype)  # in param_dtype: the numbers are Flax's
            stats[*path, "u"] = nnx.BatchStat(u.astype(wide(param_dtype)))
            stats[*path, "sigma"] = nnx.BatchStat(jnp.ones((), wide(param_dtype)))
        self.batch_stats = nnx.data(stats)

    def __call__(self, x, update_stats: bool | None = None):
        """Call the layer with normalized weights.

        Args:
          x: the layer's input.
          update_stats: True (training) iterates and keeps the estimate; False uses it as it is; None is what the
            constructor, `train()` or `eval()` said.
        """
        update = first_from(
            update_stats,
            not self.use_running_average,
            error_msg="SpectralNorm: `update_stats` must be given; got None. Pass it to the constructor or the call.",
        )
        weights = {path: self._normalize(path, w, update) for path, w in self._matrices()}
        return _call_with(self.layer_instance, weights, x)

    def _matrices(self) -> list[tuple[Path, jax.Array]]:
        found = [(path, v[...]) for path, v in _parameters(self.layer_instance) if self.n_steps >= 1 and v.ndim > 1]
        for path, w in found:
            if w.ndim > 2 and self.error_on_non_matrix:
                todo = "Flatten it, or pass error_on_non_matrix=False, which treats it as [-1, features]."
                raise ValueError(f"SpectralNorm: {path} must be a matrix; got shape {w.shape}. {todo}")
        return found

    def _normalize(self, path: Path, w: jax.Array, update: bool) -> jax.Array:
        u = _known("SpectralNorm", self.batch_stats, (*path, "u"), path)
        sigma = _known("SpectralNorm", self.batch_stats, (*path, "sigma"), path)
        state = SpectralState(u[0].astype(wide(u.dtype)), sigma[...].astype(wide(sigma.dtype)))
        dtype = dtypes.canonicalize_dtype(w, jnp.zeros((), self.param_dtype), dtype=self.dtype)
        w = w.astype(jnp.promote_types(w.dtype, dtype))
        w, state = spectral_norm(w, state, update=update, n_steps=self.n_steps, epsilon=self.epsilon)
        if update:
            u[...], sigma[...] = state.u[None], state.sigma
        return w.astype(dtype)
