"""Captured layers: replayed by hand they give what was captured; and capturing changes nothing but what is seen."""

from collections import OrderedDict
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm.inspect import History, capture, capture_linen, capture_nnx, drift, running_statistics, summarize


def images(shape=(4, 6, 6, 3), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32))


def equal(a, b, rtol=1e-5, atol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


# -- Linen: a stock residual network with stock norms -----------------------------------------------------------------


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, training: bool):
        y = nn.Conv(self.features, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not training, name="first")(y))
        y = nn.GroupNorm(num_groups=2)(nn.Conv(self.features, (3, 3))(y))
        return nn.relu(y + nn.Conv(self.features, (1, 1), name="shortcut")(x))


class ResNet(nn.Module):
    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x, training: bool):
        for name in ("block1", "block2"):
            x = self.block(4, name=name)(x, training)
        x = nn.LayerNorm()(x.mean((1, 2)))
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return nn.Dense(10)(x)


INSIDE = ["", "/Conv_0", "/first", "/Conv_1", "/GroupNorm_0", "/shortcut"]
NAMES = ["ResNet", *(block + layer for block in ("block1", "block2") for layer in INSIDE)]
NAMES += ["LayerNorm_0", "Dropout_0", "Dense_0"]


def fill(shapes):
    """Parameters and statistics without compiling initializers."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.1, 0.6, a.shape).astype(np.float32)), shapes)


@pytest.fixture(scope="module")
def resnet():
    x = images()
    return ResNet(), fill(jax.eval_shape(lambda: ResNet().init(jax.random.key(0), x, training=False))), x


TRAIN = {"training": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(7)}}


def test_a_stock_linen_resnet_is_captured_layer_by_layer(resnet):
    model, variables, x = resnet
    (y, updated), captured = jax.jit(lambda variables, x: capture_linen(model, variables, x, **TRAIN))(variables, x)
    expected = jax.jit(lambda variables, x: model.apply(variables, x, **TRAIN))(variables, x)
    equal((y, updated), expected)
    assert jax.tree.structure(updated) == jax.tree.structure(expected[1])
    assert list(captured) == NAMES, "every module, in order of execution"

    layers = {name: captured[name] for name in captured}
    np.testing.assert_array_equal(layers["ResNet"].input, x)
    np.testing.assert_array_equal(layers["ResNet"].output, y)
    np.testing.assert_array_equal(layers["block1"].input, x)
    for block in ("block1", "block2"):
        np.testing.assert_array_equal(layers[f"{block}/first"].input, layers[f"{block}/Conv_0"].output)
        np.testing.assert_array_equal(layers[f"{block}/Conv_1"].input, nn.relu(layers[f"{block}/first"].output))
        joined = layers[f"{block}/GroupNorm_0"].output + layers[f"{block}/shortcut"].output
        equal(layers[block].output, nn.relu(joined))
    np.testing.assert_array_equal(layers["block2"].input, layers["block1"].output)
    np.testing.assert_array_equal(layers["Dense_0"].input, layers["Dropout_0"].output)

    for name, module in {  # replayed by hand on what went in
        "block1/Conv_0": nn.Conv(4, (3, 3)),
        "block2/shortcut": nn.Conv(4, (1, 1)),
        "block2/GroupNorm_0": nn.GroupNorm(num_groups=2),
        "LayerNorm_0": nn.LayerNorm(),
        "Dense_0": nn.Dense(10),
    }.items():
        params = variables["params"]
        for part in name.split("/"):
            params = params[part]
        equal(module.apply({"params": params}, layers[name].input), layers[name].output)


def test_layers_under_remat_are_captured_by_their_names(resnet):
    model, variables, x = resnet
    other = ResNet(nn.remat(Block, static_argnums=(2,)))
    call = lambda model: jax.jit(lambda v, x: capture_linen(model, v, x, training=False))
    plain, rematted = (call(m)(variables, x) for m in (model, other))
    assert list(rematted[1]) == NAMES
    equal(rematted, plain)


@pytest.fixture(scope="module")
def small():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True), nn.tanh, nn.Dense(2)])
    x = images((8, 3))
    return model, fill(jax.eval_shape(model.init, jax.random.key(0), x)), x


SMALL = ["Sequential", "layers_0", "layers_1", "layers_3"]


@pytest.mark.parametrize("jit", [False, True])
def test_summaries_of_captured_layers_go_into_a_history_in_order(small, jit):
    model, variables, x = small
    look = lambda v, x: jax.tree.map(summarize, capture_linen(model, v, x)[1])
    history = History()
    history.record(0, (jax.jit(look) if jit else look)(variables, x))
    assert history.names == tuple(f"{name}/{part}" for name in SMALL for part in ("input", "output"))
    equal(history["layers_0/input"].mean[0], np.mean(x))
    equal(history["layers_3/output"].std[0], np.std(model.apply(variables, x)))


def test_drift_of_the_norms_of_a_captured_model(small):
    model, variables, x = small
    _, captured = capture_linen(model, variables, x)
    (name, stats), *_ = running_statistics(variables["batch_stats"]).items()
    seen = np.asarray(captured[name].input, np.float64)
    found = drift(stats, jn.moments(captured[name].input, 0))
    equal(found.mean, (seen.mean(0) - stats.mean) / np.sqrt(stats.var + 1e-5))
    equal(found.var, (seen.var(0) + 1e-5) / (stats.var + 1e-5))


def test_derivatives_pass_through_a_capture(small):
    model, variables, x = small

    def loss(variables, captured: bool):
        y, layers = capture_linen(model, variables, x) if captured else (model.apply(variables, x), None)
        return jnp.sum(y**2), layers

    way = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    gradient, layers = way(variables, True)
    equal(gradient, way(variables, False)[0])
    assert list(layers) == SMALL


class Lifted(nn.Module):
    """Layers under lifted transforms, one called twice, one with several arguments, one fed with integers."""

    @nn.compact
    def __call__(self, x, tokens):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.tanh(nn.Dense(4)(x)), None

        x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)(name="stack")(x, None)
        x = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0)(4, name="each")(x)
        shared = nn.Dense(4, name="shared")
        x = shared(nn.tanh(shared(x)))
        mask = jnp.ones((3, 1, 2, 2), bool)
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attend")(x, 2 * x, mask=mask)
        return x + nn.Embed(5, 4, name="embed")(tokens)


def test_lifted_shared_and_many_argument_linen_layers():
    x, tokens = images((3, 2, 4)), jnp.array([[0, 1], [2, 3], [4, 0]])
    variables = fill(jax.eval_shape(Lifted().init, jax.random.key(1), x, tokens))
    y, captured = jax.jit(lambda *args: capture_linen(Lifted(), *args))(variables, x, tokens)
    equal(y, jax.jit(Lifted().apply)(variables, x, tokens))
    params = variables["params"]

    stack, h = params["stack"]["Dense_0"], x
    for layer in range(5):
        np.testing.assert_allclose(captured["stack/Dense_0"].input[layer], h, rtol=1e-5, atol=1e-6)
        h = jnp.tanh(h @ stack["kernel"][layer] + stack["bias"][layer].reshape(1, 1, 4))
    equal(captured["each"].input, h)
    each = jnp.einsum("abi,aij->abj", h, params["each"]["kernel"]) + params["each"]["bias"][:, None]
    equal(captured["each"].output, each)
    equal(captured["shared"].input, each)
    equal(captured["shared#2"].input, jnp.tanh(captured["shared"].output))
    query, other = captured["attend"].input
    equal((query, other), (captured["shared#2"].output, 2 * captured["shared#2"].output))
    equal(captured["attend/query"].input, query)
    np.testing.assert_array_equal(captured["embed"].input, tokens)
    assert captured["stack/Dense_0"].output.shape == (5, 3, 2, 4)


def test_linen_layers_under_jit_that_were_traced_before():
    class Jitted(nn.Module):
        @nn.jit
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="b")(nn.jit(nn.Dense)(3, name="a")(x))

    x = images((2, 4))
    variables = Jitted().init(jax.random.key(0), x)
    y = Jitted().apply(variables, x)
    for _ in range(2):
        found, captured = capture_linen(Jitted(), variables, x)
        assert list(captured) == ["Jitted", "a", "b"]
        equal((found, captured["b"].output, captured["b"].input), (y, y, captured["a"].output))
        equal(Jitted().apply(variables, x), y)


def test_a_linen_method_and_a_bare_layer():
    class Two(nn.Module):
        def setup(self):
            self.a, self.b = nn.Dense(3), nn.Dense(2)

        def __call__(self, x):
            return self.b(self.encode(x))

        def encode(self, x):
            return self.a(x)

    x = images((2, 4))
    variables = Two().init(jax.random.key(0), x)
    y, captured = capture_linen(Two(), variables, x, method="encode")
    assert list(captured) == ["a"]
    equal(captured["a"].output, y)
    variables = nn.Dense(3).init(jax.random.key(0), x)
    y, captured = capture_linen(nn.Dense(3), variables, x)
    assert list(captured) == ["Dense"]
    equal(captured["Dense"], (x, y))


# -- NNX --------------------------------------------------------------------------------------------------------------


class Unit(nnx.Module):
    def __init__(self, rngs, features=4):
        self.conv = nnx.Conv(features, features, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.dropout(self.norm(self.conv(x))))


class Net(nnx.Module):
    def __init__(self, rngs, remat=False):
        self.layers = nnx.List([Unit(rngs), Unit(rngs)])
        self.out = nnx.Linear(4, 2, rngs=rngs)
        self.remat = remat

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.remat(lambda layer, x: layer(x))(layer, x) if self.remat else layer(x)
        return self.out(x.mean((1, 2)))


NNX_NAMES = ["Net", *(f"layers/{i}{part}" for i in (0, 1) for part in ("", "/conv", "/norm", "/dropout")), "out"]


@pytest.mark.parametrize("remat", [False, True])
def test_a_stock_nnx_model_is_captured_and_changed_as_by_a_plain_call(remat):
    x, model = images((4, 5, 5, 4)), Net(nnx.Rngs(0), remat)
    other = nnx.clone(model)
    before = nnx.graphdef(model)
    capturing, calling = nnx.jit(capture_nnx), nnx.jit(lambda model, x: model(x))
    for _ in range(2):  # running statistics and random draws of the first call matter to the second
        y, captured = capturing(model, x)
        equal(y, calling(other, x))
    assert list(captured) == NNX_NAMES
    assert nnx.graphdef(model) == before
    assert {type(module) for _, module in nnx.iter_modules(model)} == {type(m) for _, m in nnx.iter_modules(other)}
    same = lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=1e-5, atol=1e-5)
    jax.tree.map(same, nnx.state(model, nnx.BatchStat), nnx.state(other, nnx.BatchStat))
    counts = [jax.tree.leaves(nnx.state(m, nnx.RngCount)) for m in (model, other)]
    assert [int(count) for count in counts[0]] == [int(count) for count in counts[1]]

    np.testing.assert_array_equal(captured["layers/0"].input, x)
    np.testing.assert_array_equal(captured["layers/1"].input, captured["layers/0"].output)
    for layer in ("layers/0", "layers/1"):
        np.testing.assert_array_equal(captured[f"{layer}/norm"].input, captured[f"{layer}/conv"].output)
    equal(model.layers[1].conv(captured["layers/1/conv"].input), captured["layers/1/conv"].output)
    equal(model.out(captured["out"].input), captured["out"].output)


def test_an_nnx_model_in_a_closure_of_jit():
    model, x = Net(nnx.Rngs(0)), images((4, 5, 5, 4))
    model.eval()
    y, captured = jax.jit(lambda x: capture_nnx(model, x))(x)
    equal(y, model(x))
    assert list(captured) == NNX_NAMES


def test_nnx_layers_under_scan_have_the_steps_in_front():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self, rngs):
            self.deep = make(rngs.split(3))

        def __call__(self, x):
            step = lambda x, layer: nnx.tanh(layer(x))
            return nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.deep)

    model, x = Stack(nnx.Rngs(0)), images((2, 4))
    y, captured = capture_nnx(model, x)
    equal(y, model(x))
    for i in range(3):
        equal(captured["deep"].input[i], x)
        x = jnp.tanh(x @ model.deep.kernel[i] + model.deep.bias[i][None])
    equal(x, y)


def test_an_nnx_model_outside_of_jit_and_when_it_fails():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    other, before = nnx.clone(model), nnx.graphdef(model)
    with pytest.raises(TypeError, match="dot_general requires"):
        capture_nnx(model, images((8, 2)))
    assert nnx.graphdef(model) == before
    y, captured = capture_nnx(model, images((8, 3)))
    equal(y, other(images((8, 3))))
    equal(captured["layers/1"], (captured["layers/0"].output, y))
    equal(model.layers[1].mean[...], other.layers[1].mean[...])


# -- pure functions ---------------------------------------------------------------------------------------------------


@jax.jit
def dense(params, x):
    return x @ params["w"] + params["b"].reshape(1, -1)


@jax.custom_vjp
def doubled_gradient(w, x):
    return x @ w


doubled_gradient.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, 2 * g @ kept[0].T))


def program(params, x, flag=True):
    with jax.named_scope("encoder"):
        for layer in params["layers"]:
            x = jax.nn.relu(dense(layer, x))
    with jax.named_scope("norm"):
        x = jn.layer_norm(x)
    x = jax.checkpoint(lambda w, x: jnp.sin(x @ w))(params["w"], x) if flag else x
    x = doubled_gradient(params["w"], x)
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
    return {"y": x @ params["w"], "name": "kept"}


PROGRAM = [
    "encoder/dense_0",
    "encoder/dense_0/dot_general_0",
    "encoder/relu_0",
    "encoder/dense_1",
    "encoder/dense_1/dot_general_0",
    "encoder/relu_1",
    "norm/standardize_0",
    "dot_general_0",
    "doubled_gradient_0",
    "doubled_gradient_0/dot_general_0",
    "dot_general_1",
    "dot_general_2",
]


@pytest.fixture(scope="module")
def params():
    draw = lambda *shape: jnp.asarray(np.random.default_rng(len(shape)).normal(0.2, 0.6, shape).astype(np.float32))
    layer = {"w": draw(4, 4), "b": draw(4)}
    return {"layers": [layer, jax.tree.map(jnp.negative, layer)], "w": draw(4, 4).T, "stack": draw(3, 4, 4)}


@pytest.mark.parametrize("jit", [False, True])
def test_a_pure_function_is_captured_by_the_documented_names(params, jit):
    x = images((3, 4))
    call = lambda params, x: (lambda out, found: (out["y"], found))(*capture(program, params, x, flag=True))
    y, captured = (jax.jit(call) if jit else call)(params, x)
    equal(y, program(params, x)["y"])
    assert list(captured) == PROGRAM
    assert isinstance(captured, OrderedDict), "so that jit keeps the order"

    first = captured["encoder/dense_0"]
    equal(first.input, (params["layers"][0]["b"], params["layers"][0]["w"], x))
    equal(first.output, dense(params["layers"][0], x))
    equal(captured["encoder/dense_0/dot_general_0"], (x, x @ params["layers"][0]["w"]))
    equal(captured["encoder/relu_0"], (first.output, jax.nn.relu(first.output)))
    h = jax.nn.relu(dense(params["layers"][1], captured["encoder/relu_0"].output))
    equal(captured["norm/standardize_0"], (h, jn.layer_norm(h)))
    equal(captured["dot_general_0"], (jn.layer_norm(h), jn.layer_norm(h) @ params["w"]))
    h = jnp.sin(captured["dot_general_0"].output)
    equal(captured["doubled_gradient_0/dot_general_0"], (h, h @ params["w"]))
    h = h @ params["w"]
    for step, w in enumerate(params["stack"]):
        equal(captured["dot_general_1"].input[step], h)
        equal(captured["dot_general_1"].output[step], h @ w)
        h = jnp.tanh(h @ w)
    equal(captured["dot_general_2"], (h, y))


def test_what_is_no_array_passes_through(params):
    out, captured = capture(program, params, images((3, 4)), False)
    assert out["name"] == "kept"
    assert "dot_general_2" not in captured


@pytest.mark.parametrize("jit", [False, True])
def test_rules_for_derivatives_and_remat_survive_a_capture(params, jit):
    x = images((3, 4))

    def loss(x, captured: bool):
        y = capture(program, params, x)[0]["y"] if captured else program(params, x)["y"]
        return jnp.sum(y * jnp.arange(12.0).reshape(3, 4))

    way = jax.jit(jax.grad(loss), static_argnums=1) if jit else jax.grad(loss)
    equal(way(x, True), way(x, False), rtol=1e-4)
    np.testing.assert_array_equal(
        jax.grad(lambda x: capture(doubled_gradient, params["w"], x)[0].sum())(x),
        jax.grad(lambda x: 2 * (x @ params["w"]).sum())(x),
    )


def test_capture_under_vmap_and_of_convolutions():
    x, kernel = images((2, 3, 6, 6, 3)), images((3, 3, 3, 2), seed=1)

    def convolve(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    y, captured = jax.vmap(lambda x: capture(convolve, x))(x)
    assert list(captured) == ["conv_general_dilated_0"]
    equal(captured["conv_general_dilated_0"], (x, jax.vmap(convolve)(x)), rtol=1e-4, atol=1e-4)
    equal(y, captured["conv_general_dilated_0"].output)


NORMS = {
    "standardize": lambda x, _, *p, **how: jn.standardize(x, *p, axis=(0, 1), epsilon=1e-5, **how),
    "batch_norm": partial(jn.batch_norm, training=True),
    "ghost batches": partial(jn.batch_norm, training=True, ghost_size=3),
    "batch_renorm": partial(jn.batch_renorm, training=True),
}


@pytest.mark.parametrize("implementation", ["xla", None])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_norm_is_captured_by_what_it_normalizes_and_returns_not_by_its_statistics(norm, implementation):
    x = jax.random.normal(jax.random.key(0), (6, 5, 3)) * 2 + 1
    state, scale, bias = jn.RunningStats.init(3), jnp.array([1.0, 2, 3]), jnp.array([4.0, 5, 6])

    def model(x):
        return norm(x, state, scale, bias, implementation=implementation)

    (y, *_), captured = capture(model, x)
    assert [name for name in captured if name != "clip_0"] == ["standardize_0"]  # of jnp.clip, in batch_renorm
    np.testing.assert_array_equal(captured["standardize_0"].input.reshape(x.shape), x)
    np.testing.assert_array_equal(captured["standardize_0"].output.reshape(x.shape), y)


def test_layers_in_a_while_loop_are_not_seen_but_computed():
    def power(w, x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] @ w), (0, x @ w))[1] @ w

    w = images((2, 2)) / 4
    y, captured = capture(power, w, w)
    assert list(captured) == ["dot_general_0", "dot_general_1"]
    equal(y, jnp.linalg.matrix_power(w, 6))


def test_under_jit_what_is_not_used_of_a_capture_costs_nothing(params):
    """The copies that are run for the watcher are merged with the originals by XLA."""
    x = images((3, 4))
    text = lambda f: jax.jit(f).lower(params, x).compile().as_text()
    products = lambda text: text.count(" dot(") + text.count("matmul")
    plain = text(lambda params, x: program(params, x)["y"])
    captured = text(lambda params, x: (lambda out, found: (out["y"], found))(*capture(program, params, x)))
    assert products(captured) == products(plain) > 0
