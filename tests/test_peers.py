"""Torch, Haiku, Equinox and Keras: what jaxnorm must agree with, and where Haiku is wrong and jaxnorm is not.

Each peer is imported where it is used, so that this file can be collected without any of them.
"""

from functools import partial

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm as jn

pytestmark = pytest.mark.peers

EPSILON = 1e-3  # large enough to be seen at 1e-5


@pytest.fixture
def peer(monkeypatch):
    """Calls a peer's function under JAX's default promotion rules, which its code was written for."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")

    def call(function, *args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call


def offset_data(rng, shape, feature_axis=-1):
    """Float32; features differ in mean, 1 to 3 (not near 0, where errors are not relative), and in spread."""
    features = [1] * len(shape)
    features[feature_axis] = shape[feature_axis]
    mean, spread = rng.uniform(1, 3, features), rng.uniform(0.5, 2, features)
    return (mean + spread * rng.standard_normal(shape)).astype(np.float32)


def draw_parameters(rng, shape):
    return rng.uniform(0.5, 2, shape).astype(np.float32), rng.uniform(-1, 1, shape).astype(np.float32)


def batch_norm(x, *parameters, **options):
    return jn.batch_norm(x, None, *parameters, training=True, **options)[0]


def group_norm(x, *parameters, **options):
    return jn.group_norm(x, *parameters, num_groups=3, **options)


def train_torch(batches, scale, bias, momentum):
    """Running mean and variance after these batches; the output for the last, in training and then in inference."""
    import torch

    layer = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[batches[0].ndim](len(scale), momentum=momentum)
    layer.load_state_dict({"weight": torch.from_numpy(scale), "bias": torch.from_numpy(bias)}, strict=False)
    with torch.no_grad():
        for x in batches:
            trained = layer(torch.from_numpy(x))
        return layer.running_mean, layer.running_var, trained, layer.eval()(torch.from_numpy(batches[-1]))


def train_keras(batches, scale, bias):
    import keras

    layer = keras.layers.BatchNormalization()
    layer.build(batches[0].shape)
    layer.gamma.assign(scale)
    layer.beta.assign(bias)
    for x in batches:
        trained = layer(x, training=True)
    return layer.moving_mean.value, layer.moving_variance.value, trained, layer(batches[-1], training=False)


def train_haiku(batches, scale, bias):
    import haiku as hk

    def call(x, training):
        return hk.BatchNorm(False, False, 0.9)(x, training, scale=scale, offset=bias)

    layer = hk.without_apply_rng(hk.transform_with_state(call))
    _, state = layer.init(None, batches[0], True)
    for x in batches:
        trained, state = layer.apply({}, state, x, True)
    mean, var = (state[f"batch_norm/~/{name}_ema"]["average"].squeeze() for name in ("mean", "var"))
    return mean, var, trained, layer.apply({}, state, batches[-1], False)[0]


TORCH = {"momentum": 1 - 0.1, "ddof": 1, "feature_axis": 1}
KERAS = {"momentum": 0.99, "epsilon": 1e-3}
HAIKU = {"momentum": 0.9, "debias": True}


@pytest.mark.parametrize("shape", [(9, 6), (4, 6, 3, 5)])
@pytest.mark.parametrize(
    ("train", "convention"),
    [
        pytest.param(partial(train_torch, momentum=0.1), TORCH, id="torch"),
        pytest.param(partial(train_torch, momentum=None), TORCH | {"momentum": None}, id="torch_cumulative"),
        pytest.param(train_keras, KERAS, id="keras"),
        pytest.param(train_haiku, HAIKU, id="haiku"),
    ],
)
def test_twenty_training_steps_give_the_peers_statistics_and_outputs(train, convention, shape, peer):
    rng = np.random.default_rng(0)
    feature_axis = convention.get("feature_axis", -1)
    batches = [offset_data(rng, shape, feature_axis) for _ in range(20)]
    scale, bias = draw_parameters(rng, shape[feature_axis])
    mean, var, trained, inferred = peer(train, batches, scale, bias)
    stats = jn.RunningStats.init(shape[feature_axis])
    for x in batches:
        y, stats = jn.batch_norm(x, stats, scale, bias, training=True, **convention)
    assert_allclose(stats.mean, mean, rtol=1e-6, atol=1e-7)
    assert_allclose(stats.var, var, rtol=1e-6, atol=1e-7)
    assert_allclose(y, trained, rtol=1e-5, atol=1e-5)
    y, _ = jn.batch_norm(x, stats, scale, bias, training=False, **convention)
    assert_allclose(y, inferred, rtol=1e-5, atol=1e-5)


RUNNING = {"running_mean": None, "running_var": None, "training": True}


@pytest.mark.parametrize(
    ("norm", "shape", "features", "options", "torch_options"),
    [
        pytest.param(batch_norm, (4, 6, 3, 5), 6, {"feature_axis": 1}, RUNNING, id="batch"),
        pytest.param(jn.layer_norm, (4, 3, 6), 6, {}, {"normalized_shape": (6,)}, id="layer"),
        pytest.param(jn.layer_norm, (4, 3, 6), (3, 6), {"axis": (1, 2)}, {"normalized_shape": (3, 6)}, id="layer_2d"),
        pytest.param(jn.rms_norm, (4, 3, 6), 6, {}, {"normalized_shape": (6,)}, id="rms"),
        pytest.param(group_norm, (4, 6, 3, 5), 6, {"feature_axis": 1}, {"num_groups": 3}, id="group"),
        pytest.param(jn.instance_norm, (4, 6, 3, 5), 6, {"feature_axis": 1}, {}, id="instance"),
    ],
)
def test_output_and_gradients_are_torch(norm, shape, features, options, torch_options):
    import torch

    rng = np.random.default_rng(1)
    x = offset_data(rng, shape, options.get("feature_axis", -1))
    scale, bias = draw_parameters(rng, features)
    inputs = {"input": x, "weight": scale} | ({} if norm is jn.rms_norm else {"bias": bias})
    cotangent = rng.standard_normal(shape).astype(np.float32)
    theirs = {name: torch.from_numpy(value).requires_grad_() for name, value in inputs.items()}
    torch_y = getattr(torch.nn.functional, norm.__name__)(**theirs, **torch_options, eps=EPSILON)
    torch_y.backward(torch.from_numpy(cotangent))
    y, vjp = jax.vjp(partial(norm, **options, epsilon=EPSILON), *inputs.values())
    assert_allclose(y, torch_y.detach(), rtol=1e-5, atol=1e-5)
    for gradient, tensor in zip(vjp(cotangent), theirs.values(), strict=True):
        assert_allclose(gradient, tensor.grad, rtol=1e-5, atol=1e-5)


def run_haiku(make, x, scale, bias):
    import haiku as hk

    layer = hk.without_apply_rng(hk.transform(lambda x: make(hk)(x)))
    values = {"scale": scale, "offset": bias}
    drawn = {
        module: {name: values[name].reshape(p.shape) for name, p in parameters.items()}
        for module, parameters in layer.init(None, x).items()
    }
    return layer.apply(drawn, x)


def run_equinox(make, x, scale, bias):
    import equinox as eqx

    ones, layer = jax.tree.flatten(make(eqx.nn))
    layer = jax.tree.unflatten(layer, (scale, bias)[: len(ones)])
    if isinstance(layer, eqx.nn.GroupNorm):  # one sample, features first
        return jax.vmap(lambda x: layer(x.T).T)(x)
    return jax.vmap(jax.vmap(layer))(x)


def run_keras(make, x, scale, bias):
    import keras

    layer = make(keras.layers)
    layer.build(x.shape)
    layer.set_weights((scale, bias)[: len(layer.weights)])
    return layer(x)


@pytest.mark.parametrize(
    ("norm", "run", "make"),
    [
        (jn.layer_norm, run_haiku, lambda hk: hk.LayerNorm(-1, True, True, EPSILON, param_axis=-1)),
        (jn.layer_norm, run_equinox, lambda nn: nn.LayerNorm(6, EPSILON)),
        (jn.layer_norm, run_keras, lambda layers: layers.LayerNormalization(epsilon=EPSILON)),
        (jn.rms_norm, run_haiku, lambda hk: hk.RMSNorm(-1, EPSILON)),
        (jn.rms_norm, run_equinox, lambda nn: nn.RMSNorm(6, EPSILON, use_bias=False)),
        (jn.rms_norm, run_keras, lambda layers: layers.RMSNormalization(epsilon=EPSILON)),
        (group_norm, run_haiku, lambda hk: hk.GroupNorm(3, eps=EPSILON)),
        (group_norm, run_equinox, lambda nn: nn.GroupNorm(3, 6, EPSILON)),
        (group_norm, run_keras, lambda layers: layers.GroupNormalization(3, epsilon=EPSILON)),
        (jn.instance_norm, run_haiku, lambda hk: hk.InstanceNorm(True, True, EPSILON)),
        (jn.instance_norm, run_equinox, lambda nn: nn.GroupNorm(6, 6, EPSILON)),
        (jn.instance_norm, run_keras, lambda layers: layers.GroupNormalization(-1, epsilon=EPSILON)),
    ],
)
def test_output_is_the_peers(norm, run, make, peer):
    rng = np.random.default_rng(2)
    x = offset_data(rng, (4, 7, 6))
    scale, bias = draw_parameters(rng, 6)
    y = norm(x, *(scale, bias)[: 1 if norm is jn.rms_norm else 2], epsilon=EPSILON)
    assert_allclose(y, peer(run, make, x, scale, bias), rtol=1e-5, atol=1e-5)


def test_haiku_variance_is_negative_and_its_output_nan_on_a_large_mean_and_ours_is_right(peer):
    import haiku as hk

    x = np.random.default_rng(3).normal(1e4, 1, (64, 200)).astype(np.float32)  # 200 draws of 64 values
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)

    def call(x):
        return hk.BatchNorm(False, False, 0.9)(x, is_training=True)

    layer = hk.without_apply_rng(hk.transform_with_state(call))
    y, state = peer(lambda: layer.apply(*layer.init(None, x), x))
    assert np.isnan(y).any()
    assert (state["batch_norm/~/var_ema"]["average"] < 0).any()
    assert_allclose(batch_norm(x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_local_response_norm_and_its_gradient_are_torch(size):
    import torch

    rng = np.random.default_rng(4)
    x, cotangent = offset_data(rng, (4, 7, 3, 5), 1), rng.standard_normal((4, 7, 3, 5)).astype(np.float32)
    options = {"size": size, "alpha": 0.5, "beta": 0.75, "k": 1.5}
    theirs = torch.from_numpy(x).requires_grad_()
    torch_y = torch.nn.functional.local_response_norm(theirs, **options)
    torch_y.backward(torch.from_numpy(cotangent))
    y, pull = jax.vjp(partial(jn.local_response_norm, feature_axis=1, **options), x)
    assert_allclose(y, torch_y.detach(), rtol=1e-5, atol=1e-6)
    assert_allclose(pull(cotangent)[0], theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, 3, float("inf")])
def test_lp_normalize_and_its_gradient_are_torch(p):
    """A vector shorter than epsilon among them."""
    import torch

    rng = np.random.default_rng(5)
    x, cotangent = offset_data(rng, (6, 4)), rng.standard_normal((6, 4)).astype(np.float32)
    x[2] *= 1e-3
    theirs = torch.from_numpy(x).requires_grad_()
    torch_y = torch.nn.functional.normalize(theirs, p=p, dim=1, eps=0.1)
    torch_y.backward(torch.from_numpy(cotangent))
    y, pull = jax.vjp(partial(jn.lp_normalize, p=p, axis=1, epsilon=0.1), x)
    assert_allclose(y, torch_y.detach(), rtol=1e-5, atol=1e-6)
    assert_allclose(pull(cotangent)[0], theirs.grad, rtol=1e-5, atol=1e-5)


def test_unit_normalization_is_keras(peer):
    import keras

    x = offset_data(np.random.default_rng(6), (4, 7, 6))
    theirs = peer(lambda: keras.layers.UnitNormalization(axis=(1, 2))(x))
    assert_allclose(jn.lp_normalize(x, axis=(1, 2)), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.1, 0.2)], ids=["free", "clipped"])
def test_batch_renorm_and_its_gradients_are_keras(r_max, d_max, peer):
    """With Keras's lower clip of r set to 1 / r_max. (Its averages are of the deviation: only outputs are compared.)"""
    import keras

    rng = np.random.default_rng(7)
    x, cotangent = offset_data(rng, (9, 5, 6)), rng.standard_normal((9, 5, 6)).astype(np.float32)
    scale, bias = draw_parameters(rng, 6)
    mean, var = rng.uniform(1, 3, 6).astype(np.float32), rng.uniform(0.5, 2, 6).astype(np.float32)

    def keras_output():
        clipping = {"rmin": 1 / r_max, "rmax": r_max, "dmax": d_max}
        layer = keras.layers.BatchNormalization(epsilon=EPSILON, renorm=True, renorm_clipping=clipping)
        layer.build(x.shape)
        layer.renorm_mean.assign(mean)
        layer.renorm_stddev.assign(np.sqrt(var + EPSILON))
        names = [v.path for v in layer.trainable_variables]
        parameters = [{"gamma": scale, "beta": bias}[name.split("/")[-1]] for name in names]
        rest = [v.value for v in layer.non_trainable_variables]
        call = lambda x, *parameters: layer.stateless_call(list(parameters), rest, x, training=True)[0]
        y, pull = jax.vjp(call, x, *parameters)
        dx, *by_name = pull(cotangent)
        return y, dx, dict(zip((name.split("/")[-1] for name in names), by_name, strict=True))

    theirs, dx, gradients = peer(keras_output)
    stats = jn.RunningStats(mean, var, np.ones(6, np.float32))
    limits = {"r_max": r_max, "d_max": d_max, "epsilon": EPSILON}
    call = lambda *args: jn.batch_renorm(args[0], stats, *args[1:], training=True, **limits)[0]
    y, pull = jax.vjp(call, x, scale, bias)
    assert_allclose(y, theirs, rtol=1e-5, atol=1e-5)
    for ours, peers in zip(pull(cotangent), (dx, gradients["gamma"], gradients["beta"]), strict=True):
        assert_allclose(ours, peers, rtol=1e-4, atol=2e-5)
