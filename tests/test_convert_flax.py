"""Real Flax modules, Linen and NNX, converted both ways and into each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn
import jaxnorm.linen as jnl
from jaxnorm import convert

rng = np.random.default_rng(0)
x = rng.normal(1, 2, (4, 5, 5, 3)).astype(np.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.WeightNorm(nn.Conv(8, (3, 3), use_bias=False))(x)
        x = nn.BatchNorm(use_running_average=not training, momentum=0.9, epsilon=1e-3, use_fast_variance=False)(x)
        x = nn.GroupNorm(4, use_fast_variance=False)(x)
        x = nn.relu(nn.SpectralNorm(nn.Dense(8), name="sn")(x, update_stats=training))
        x = nn.LayerNorm(use_fast_variance=False, name="ln")(x)
        x = nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3), use_fast_variance=False)(x)
        return nn.InstanceNorm(use_fast_variance=False)(nn.RMSNorm()(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        conv, dense = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.wn, self.sn = nnx.WeightNorm(conv, rngs=rngs), nnx.SpectralNorm(dense, rngs=rngs)
        self.norms = nnx.List([
            nnx.BatchNorm(8, momentum=0.9, epsilon=1e-3, use_fast_variance=False, rngs=rngs),
            nnx.GroupNorm(8, 4, use_fast_variance=False, rngs=rngs),
            nnx.LayerNorm(8, use_fast_variance=False, rngs=rngs),
            nnx.RMSNorm(8, rngs=rngs),
        ])  # fmt: skip


BATCH = {"momentum": 0.9, "epsilon": 1e-3}


def randomize(tree):
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape), a.dtype), tree)


@pytest.fixture(scope="module")
def linen():
    variables = randomize(Net().init(jax.random.key(0), x, training=False))
    for _ in range(3):
        _, updated = Net().apply(variables, x, training=True, mutable="batch_stats")
        variables = variables | updated
    told = {"BatchNorm_0": BATCH, "GroupNorm_0": {"num_groups": 4}, "ln": "layer_norm"}
    return variables, convert.read("flax", variables, told)


def test_linen_layers_are_found_and_infer_alike(linen):
    variables, (layers, left) = linen
    assert set(left) == {"params/Dense_0/bias"}
    layer = layers["WeightNorm_0:Conv_0/kernel"]
    y = nn.Conv(8, (3, 3), use_bias=False).apply(
        {"params": {"kernel": jn.weight_norm(layer.weight, layer.scale, **layer.options)}}, x
    )
    layer = layers["BatchNorm_0"]
    y, _ = jn.batch_norm(y, layer.stats, layer.scale, layer.bias, training=False, **layer.options)
    for name, function in (
        ("GroupNorm_0", jn.group_norm),
        (None, None),
        ("ln", jn.layer_norm),
        ("LayerNorm_0", jn.layer_norm),
    ):
        if name is None:
            layer = layers["sn:Dense_0/kernel"]
            # Flax iterates in inference too
            w, _ = jn.spectral_norm(layer.weight, layer.spectral, update=True, **layer.options)
            y = jax.nn.relu(
                nn.Dense(8).apply({"params": {"kernel": w, "bias": variables["params"]["Dense_0"]["bias"]}}, y)
            )
            continue
        layer = layers[name]
        y = function(y, layer.scale, layer.bias, **layer.options)
    assert layers["LayerNorm_0"].options["axis"] == (-3, -2, -1)
    y = jn.rms_norm(y, layers["RMSNorm_0"].scale, **layers["RMSNorm_0"].options)
    layer = layers["InstanceNorm_0"]
    y = jn.instance_norm(y, layer.scale, layer.bias, **layer.options)
    assert_allclose(y, Net().apply(variables, x, training=False), rtol=2e-5, atol=2e-5)


def test_linen_variables_come_back(linen):
    variables, (layers, _) = linen
    fresh = Net().init(jax.random.key(1), x, training=False)
    written, arguments, lost = convert.write("flax", layers, into=fresh)
    assert lost == {}
    written["params"]["Dense_0"]["bias"] = variables["params"]["Dense_0"]["bias"]
    jax.tree.map(assert_array_equal, written, dict(variables))
    assert arguments["BatchNorm_0"] == BATCH  # nothing that Flax's own module would not take
    assert arguments["LayerNorm_0"] == {"epsilon": 1e-6, "reduction_axes": (-3, -2, -1), "feature_axes": (-3, -2, -1)}
    assert arguments["WeightNorm_0:Conv_0/kernel"] == {"epsilon": 1e-12, "feature_axes": -1}
    nn.BatchNorm(use_running_average=True, **arguments["BatchNorm_0"])
    nn.LayerNorm(**arguments["LayerNorm_0"])


NAMES = {
    "WeightNorm_0:Conv_0/kernel": "wn:kernel",
    "sn:Dense_0/kernel": "sn:kernel",
    "BatchNorm_0": "norms/0",
    "GroupNorm_0": "norms/1",
    "ln": "norms/2",
    "RMSNorm_0": "norms/3",
}


def test_linen_becomes_nnx_and_linen_again(linen):
    variables, (layers, _) = linen
    model = Nnx(nnx.Rngs(0))
    state = nnx.state(model)
    moved = {new: layers[old] for old, new in NAMES.items()}
    alone = convert.write("nnx", moved).state
    written = convert.write("nnx", moved, into=nnx.to_pure_dict(state)).state
    written["sn"]["layer_instance"]["bias"] = variables["params"]["Dense_0"]["bias"]
    alone["sn"]["layer_instance"]["bias"] = written["sn"]["layer_instance"]["bias"]
    jax.tree.map(assert_array_equal, alone, written)
    assert jax.tree.structure(alone) == jax.tree.structure(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, written)
    nnx.update(model, state)
    model.eval()
    y = model.wn(x)
    for i in (0, 1):
        y = model.norms[i](y)
    y = model.norms[2](nnx.relu(model.sn(y, update_stats=False)))
    y = model.norms[3](y)

    trained = {name: variables["params"][name] for name in ("ln", "RMSNorm_0")}
    probe = lambda m, _: isinstance(m, nn.LayerNorm) and m.name == "ln"
    _, captured = Net().apply(variables, x, training=False, capture_intermediates=probe, mutable="intermediates")
    expected = captured["intermediates"]["ln"]["__call__"][0]
    assert_allclose(y, nn.RMSNorm().apply({"params": trained["RMSNorm_0"]}, expected), rtol=2e-5, atol=2e-5)

    told = {
        "norms/0": BATCH,
        "norms/1": {"kind": "group_norm", "num_groups": 4},
        "norms/2": "layer_norm",
        "norms/3": "rms_norm",
    }
    again, left = convert.read("nnx", written, told)
    assert set(left) == {"sn/layer_instance/bias"}
    back = {old: again[new] for old, new in NAMES.items()}
    same = convert.write("flax", back, into=variables).state
    jax.tree.map(assert_array_equal, same, dict(variables))


def test_jaxnorm_modules_keep_a_count_where_it_matters():
    norm = jnl.BatchNorm(use_running_average=False, momentum=0.5, debias=True)
    variables = norm.init(jax.random.key(0), x)
    for _ in range(3):
        _, updated = norm.apply(variables, x, mutable="batch_stats")
        variables = variables | updated
    layer = convert.read_layer("flax", variables, momentum=0.5, debias=True)
    assert_array_equal(layer.stats.count, np.full(3, 3, np.float32))
    assert_allclose(layer.stats.mean, x.mean((0, 1, 2)), rtol=1e-5)
    state, arguments, lost = convert.write("flax", {"": layer})
    jax.tree.map(assert_array_equal, state, dict(variables))
    assert arguments == {"": {"momentum": 0.5, "epsilon": 1e-5, "debias": True}}
    assert lost == {}
    jnl.BatchNorm(use_running_average=True, **arguments[""]).apply(state, x)


def test_a_wrapper_at_the_top_and_one_length_in_all():
    wrapped = nn.WeightNorm(nn.Dense(4), feature_axes=None)
    variables = randomize(wrapped.init(jax.random.key(0), x))
    layer = convert.read("flax", variables).layers[":layer_instance/kernel"]
    assert layer.options["axis"] is None
    w = jn.weight_norm(layer.weight, layer.scale, **layer.options)
    expected = nn.Dense(4).apply({"params": {"kernel": w, "bias": variables["params"]["layer_instance"]["bias"]}}, x)
    assert_allclose(wrapped.apply(variables, x), expected, rtol=1e-5, atol=1e-5)
    written = convert.write("flax", {":layer_instance/kernel": layer}, into=variables)
    jax.tree.map(assert_array_equal, written.state, dict(variables))
    assert written.arguments[":layer_instance/kernel"]["feature_axes"] is None
