"""WeightNorm and SpectralNorm of both idioms beside Flax's wrappers, and where they differ on purpose.

Compared with the Flax that is installed (0.12.8 or newer); what the newest one changed is stated as a literal.
"""

import functools

import flax
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm.linen as jnl
import jaxnorm.nnx as jnnx

KEY = jax.random.key(0)
NEWEST = tuple(map(int, flax.__version__.split(".")[:3])) >= (0, 12, 12)


@pytest.fixture(autouse=True)
def as_flax_expects():
    """Flax's own code promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def data(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 2 + 1).astype(dtype)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree), jax.tree.structure(tree)


def close(ours, theirs, half=False):
    """1e-6 and four units in the last place; of half precision for half weights, which Flax rounds at every step."""
    assert ours.dtype == theirs.dtype
    tolerance = 4 * float(jnp.finfo(jnp.bfloat16).eps) if half else 1e-6 + 4 * 2.0**-23
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1.0))


OPTIONS = [
    ("WeightNorm", {}),
    ("WeightNorm", {"use_scale": False}),
    ("WeightNorm", {"feature_axes": None}),
    ("WeightNorm", {"feature_axes": (0, -1)}),
    ("WeightNorm", {"epsilon": 0.5}),
    ("WeightNorm", {"dtype": jnp.bfloat16}),
    ("WeightNorm", {"param_dtype": jnp.bfloat16}),
    ("SpectralNorm", {}),
    ("SpectralNorm", {"n_steps": 4}),
    ("SpectralNorm", {"n_steps": 0}),
    ("SpectralNorm", {"epsilon": 0.5}),
    ("SpectralNorm", {"dtype": jnp.bfloat16}),
]
LAYERS = {  # name: (input, Linen layer, NNX layer)
    "dense": ((5, 4), lambda **k: nn.Dense(3, **k), lambda **k: nnx.Linear(4, 3, **k)),
    "conv": ((2, 5, 6, 4), lambda **k: nn.Conv(3, (2, 3), **k), lambda **k: nnx.Conv(4, 3, (2, 3), **k)),
}
GRID = [(name, options, layer) for name, options in OPTIONS for layer in LAYERS]


def random_like(tree, seed=1):
    """Anything but the initial values."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype), tree)


@pytest.mark.parametrize(("name", "options", "layer"), GRID)
def test_linen_variables_outputs_state_and_gradients_are_flax_s(name, options, layer):
    shape, make, _ = LAYERS[layer]
    x, weight = data(shape), None
    training = {"update_stats": True} if name == "SpectralNorm" else {}
    ours, theirs = (getattr(lib, name)(make(), **options) for lib in (jnl, nn))
    mine, variables = (module.init(KEY, x, **training) for module in (ours, theirs))
    assert shapes(mine) == shapes(variables)
    half = jnp.bfloat16 in options.values()
    jax.tree.map(functools.partial(close, half=half), mine, variables)
    variables = random_like(variables)
    weight = data(ours.apply(variables, x, **dict.fromkeys(training, False)).shape, seed=2)

    def run(module, params, x):
        y, state = module.apply({**variables, "params": params}, x, mutable=["batch_stats"], **training)
        return jnp.sum(y * weight), (y, state)

    results = [
        jax.value_and_grad(functools.partial(run, module), (0, 1), has_aux=True)(variables["params"], x)
        for module in (ours, theirs)
    ]
    (_, (y, state)), gradients = results[0]
    (_, (y_flax, state_flax)), gradients_flax = results[1]
    close(y, y_flax, half)
    assert shapes(state) == shapes(state_flax)
    jax.tree.map(functools.partial(close, half=half), state, state_flax)
    if not half:
        scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients_flax))
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale), gradients, gradients_flax)


@pytest.mark.parametrize(("name", "options", "layer"), GRID)
def test_nnx_outputs_state_and_gradients_are_flax_s(name, options, layer):
    """One step: from the second on Flax trains what it put in the kernel's place."""
    half = jnp.bfloat16 in options.values()
    shape, _, make = LAYERS[layer]
    x = data(shape)
    results = []
    for lib in (jnnx, nnx):
        rngs = nnx.Rngs(0)
        module = getattr(lib, name)(make(rngs=rngs), rngs=rngs, **options)
        drawn = rngs.params()
        for v in jax.tree.leaves(nnx.state(module.layer_instance), is_leaf=lambda v: isinstance(v, nnx.Variable)):
            v[...] = random_like(v[...])
        before = nnx.to_pure_dict(nnx.state(module))

        def loss(module):
            y = module(x)
            return jnp.sum(y.astype(jnp.float32) * data(y.shape, seed=2)), y

        gradients, y = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param), has_aux=True)(module)
        results.append((before, y, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), gradients, drawn, module))
    (before, y, state, gradients, drawn, module), (before_flax, y_flax, state_flax, gradients_flax, drawn_flax, _) = (
        results
    )
    if "param_dtype" in options and name == "WeightNorm":  # Flax NNX takes it and does not use it
        assert before["scales"]["kernel",].dtype == jnp.bfloat16
    elif NEWEST or name == "SpectralNorm":
        assert shapes(before) == shapes(before_flax)
    jax.tree.map(close, before["layer_instance"], before_flax["layer_instance"])
    close(y, y_flax, half)
    assert shapes(state) == shapes(state_flax)
    jax.tree.map(functools.partial(close, half=half), state, state_flax)
    assert_array_equal(jax.random.key_data(drawn), jax.random.key_data(drawn_flax))
    if not half:
        a, b = (nnx.to_pure_dict(g)["layer_instance"] for g in (gradients, gradients_flax))
        size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(b))
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6 * size), a, b)
    # The kernel is what it was, bit for bit.
    jax.tree.map(assert_array_equal, nnx.to_pure_dict(nnx.state(module.layer_instance)), before["layer_instance"])


def test_variable_trees_are_the_newest_flax_s():
    x = jnp.ones((1, 4))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnl.WeightNorm(nn.Dense(4), variable_filter=None)(x)
            return jnl.SpectralNorm(nn.Dense(3))(x, update_stats=True)

    tree = jax.tree.map(jnp.shape, Model().init(KEY, x))
    assert tree["params"]["WeightNorm_0"] == {"Dense_0/bias/scale": (4,), "Dense_0/kernel/scale": (4,)}
    assert tree["batch_stats"] == {"SpectralNorm_0": {"Dense_1/kernel/u": (1, 3), "Dense_1/kernel/sigma": ()}}
    rngs = nnx.Rngs(0)
    weight = jnnx.WeightNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs)
    assert [(path, type(v), v.shape) for path, v in nnx.to_flat_state(nnx.state(weight))] == [
        (("layer_instance", "bias"), nnx.Param, (3,)),
        (("layer_instance", "kernel"), nnx.Param, (4, 3)),
        (("scales", ("kernel",)), nnx.Param, (3,)),
    ]


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_linen_checkpoints_restore_both_ways(name):
    training = {"update_stats": True} if name == "SpectralNorm" else {}
    modules = [getattr(lib, name)(nn.Dense(3)) for lib in (jnl, nn)]
    for one, other in (modules, modules[::-1]):
        written = one.init(KEY, data((5, 4)), **training)
        blank = other.init(jax.random.key(1), data((5, 4)), **training)
        restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(written))
        jax.tree.map(assert_array_equal, restored, written)
        close(*(module.apply(restored, data((5, 4)), **dict.fromkeys(training, False)) for module in (one, one)))


def test_half_precision_weights_are_rounded_once():
    """A bfloat16 kernel with float32 scales and estimates: the layer gets weights that are float32 throughout."""
    kernel = data((4, 3), "bfloat16")
    wide = np.asarray(kernel, np.float64)
    eye = jnp.eye(4)
    for name, call in (("WeightNorm", {}), ("SpectralNorm", {"update_stats": False})):
        module = getattr(jnl, name)(nn.Dense(3, use_bias=False, param_dtype=jnp.bfloat16))
        variables = module.init(KEY, eye, **call)
        variables["params"]["layer_instance"]["kernel"] = kernel
        wrapped = getattr(jnnx, name)(
            nnx.Linear(4, 3, use_bias=False, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)
        )
        wrapped.eval()
        wrapped.layer_instance.kernel[...] = kernel
        if name == "WeightNorm":
            expected = [wide / np.linalg.norm(wide, axis=0)] * 2
        else:
            us = variables["batch_stats"]["layer_instance/kernel/u"], wrapped.batch_stats["kernel", "u"][...]
            expected = [wide / np.linalg.norm(wide @ np.asarray(u, np.float64).ravel()) for u in us]
        assert_allclose(module.apply(variables, eye, **call), expected[0], rtol=1e-5, atol=1e-6)
        assert_allclose(wrapped(eye), expected[1], rtol=1e-5, atol=1e-6)


def train(model, x, target, steps=20):
    """Twenty steps of SGD on everything that is a Param."""
    optimizer = nnx.Optimizer(model, optax.sgd(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - target) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    return [float(step(model, optimizer)) for _ in range(steps)]


def test_nnx_weight_norm_trains_the_kernel_and_the_scales_and_flax_s_kernel_is_overwritten():
    x, target = data((16, 4)), data((16, 3), seed=1)
    ours, theirs = (
        lib.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1), **options)
        for lib, options in ((jnnx, {}), (nnx, {}))
    )
    kernel = np.array(ours.layer_instance.kernel[...])
    ours(x), theirs(x)
    assert_array_equal(ours.layer_instance.kernel[...], kernel)
    assert_allclose(np.linalg.norm(theirs.layer_instance.kernel[...], axis=0), 1, rtol=1e-5)  # Flax: no longer `kernel`
    assert (np.abs(np.linalg.norm(kernel, axis=0) - 1) > 0.005).all()
    losses = train(ours, x, target)
    assert losses[-1] < losses[0]
    assert (np.asarray(ours.scales["kernel",][...]) != 1).all()
    assert (np.asarray(ours.layer_instance.kernel[...]) != kernel).any()
    # The gradient of a direction is at right angles to it (Salimans & Kingma, section 2.1): SGD only lengthens v.
    assert (np.linalg.norm(ours.layer_instance.kernel[...], axis=0) >= np.linalg.norm(kernel, axis=0)).all()


@pytest.mark.parametrize("idiom", ["linen", "nnx"])
def test_a_wrapped_layer_trains_as_its_formula_written_out(idiom):
    """Twenty steps against plain jnp: w = g v / |v|."""
    x, target = data((16, 4)), data((16, 3), seed=1)
    kernel, scale, bias = data((4, 3), seed=2), data((3,), seed=3), data((3,), seed=4)

    def plain(params):
        v, g, b = params
        return jnp.mean((x @ (g * v / jnp.linalg.norm(v, axis=0)) + b - target) ** 2)

    params, expected = (kernel, scale, bias), []
    for _ in range(20):
        loss, gradients = jax.value_and_grad(plain)(params)
        expected.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
    if idiom == "nnx":
        model = jnnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        model.layer_instance.kernel[...], model.layer_instance.bias[...] = kernel, bias
        model.scales["kernel",][...] = scale
        losses = train(model, x, target)
        trained = (model.layer_instance.kernel[...], model.scales["kernel",][...], model.layer_instance.bias[...])
    else:
        module, losses = jnl.WeightNorm(nn.Dense(3)), []
        tree = {"layer_instance": {"kernel": kernel, "bias": bias}, "layer_instance/kernel/scale": scale}
        for _ in range(20):
            objective = lambda tree: jnp.mean((module.apply({"params": tree}, x) - target) ** 2)
            loss, gradients = jax.value_and_grad(objective)(tree)
            losses.append(float(loss))
            tree = jax.tree.map(lambda p, g: p - 0.05 * g, tree, gradients)
        trained = (
            tree["layer_instance"]["kernel"],
            tree["layer_instance/kernel/scale"],
            tree["layer_instance"]["bias"],
        )
    assert_allclose(losses, expected, rtol=1e-5)
    for a, b in zip(trained, params, strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("idiom", ["linen", pytest.param("nnx", marks=pytest.mark.full)])
@pytest.mark.parametrize("layer", ["dense", "grouped", pytest.param("conv", marks=pytest.mark.full)])
@pytest.mark.parametrize("scaled", [False, True])
def test_standardized_weights_of_any_layer(idiom, layer, scaled):
    """The layer's own kernel, standardized in NumPy over everything but the outputs; the kernel itself stays."""
    shape = {"dense": (3, 4), "conv": (3, 5, 6, 4), "grouped": (3, 5, 6, 4)}[layer]
    x, groups = data(shape), 2 if layer == "grouped" else 1
    options = {"scaled": scaled, "epsilon": 1e-4}
    if idiom == "linen":
        make = lambda: nn.Dense(8) if layer == "dense" else nn.Conv(8, (2, 3), feature_group_count=groups)
        module = jnl.WeightStandardize(make(), **options)
        params = module.init(KEY, x)["params"]
        if scaled:
            params["layer_instance/kernel/gain"] = jnp.linspace(0.5, 1.5, 8)
        assert ("layer_instance/kernel/gain" in params) == scaled
        y, kernel = module.apply({"params": params}, x), params["layer_instance"]["kernel"]
        plain = lambda kernel: make().apply({"params": {**params["layer_instance"], "kernel": kernel}}, x)
    else:
        rngs = nnx.Rngs(0)
        conv = lambda: nnx.Conv(4, 8, (2, 3), feature_group_count=groups, rngs=rngs)
        inner = nnx.Linear(4, 8, rngs=rngs) if layer == "dense" else conv()
        module = jnnx.WeightStandardize(inner, rngs=rngs, **options)
        if scaled:
            module.gains["kernel",][...] = jnp.linspace(0.5, 1.5, 8)
        assert (module.gains is not None) == scaled
        before = np.array(inner.kernel[...])
        y = module(x)
        kernel = inner.kernel[...]
        assert_array_equal(kernel, before)

        def plain(kernel):
            inner.kernel[...] = kernel
            return inner(x)

    w = np.asarray(kernel, np.float64)
    axes = tuple(range(w.ndim - 1))
    w = (w - w.mean(axes)) / np.sqrt(w.var(axes) + 1e-4)
    if scaled:
        w = w * np.linspace(0.5, 1.5, 8) / np.sqrt(w[..., 0].size)
    assert_allclose(y, plain(jnp.asarray(w, jnp.float32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gain_may_be_asked_for_and_refused(scaled):
    """Against the default, which has one where weights are scaled."""
    options = {"scaled": scaled, "use_gain": not scaled}
    params = jnl.WeightStandardize(nn.Dense(8), **options).init(KEY, data((3, 4)))["params"]
    assert ("layer_instance/kernel/gain" in params) != scaled
    module = jnnx.WeightStandardize(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1), **options)
    assert (module.gains is not None) != scaled


@pytest.mark.parametrize("idiom", ["linen", "nnx"])
def test_weight_norm_may_start_as_the_identity(idiom):
    x = data((2, 5, 6, 4))
    if idiom == "linen":
        module = jnl.WeightNorm(nn.Conv(3, (2, 3)), start_as_identity=True)
        params = module.init(KEY, x)["params"]
        y = module.apply({"params": params}, x)
        plain = nn.Conv(3, (2, 3)).apply({"params": params["layer_instance"]}, x)
        length = params["layer_instance/kernel/scale"]
        other = nn.WeightNorm(nn.Conv(3, (2, 3))).init_with_output(KEY, x)[0]
    else:
        layer = nnx.Conv(4, 3, (2, 3), rngs=nnx.Rngs(0))
        plain = layer(x)
        wrapped = jnnx.WeightNorm(layer, start_as_identity=True, rngs=nnx.Rngs(1))
        y, length = wrapped(x), wrapped.scales["kernel",][...]
        other = nnx.WeightNorm(layer, rngs=nnx.Rngs(1))(x)
    assert_allclose(y, plain, rtol=1e-5, atol=1e-5)
    assert (np.abs(np.asarray(length) - 1) > 0.01).all()
    assert np.abs(other - plain).max() > 0.1  # Flax: length 1, another function


def test_spectral_norm_does_not_iterate_at_inference_and_flax_s_does():
    """With the stored u as it is, sigma = |W u|; Flax makes new vectors in every call and forgets them."""
    x, eye = data((5, 4)), jnp.eye(4)

    def error(w, kernel, u):
        kernel, u = np.asarray(kernel, np.float64), np.asarray(u, np.float64).ravel()
        return np.abs(np.asarray(w) - kernel / np.linalg.norm(kernel @ u)).max()

    name = "layer_instance/kernel/"
    for lib, same in ((jnl, True), (nn, False)):
        module = lib.SpectralNorm(nn.Dense(3, use_bias=False))
        variables = module.init(KEY, x, update_stats=False)
        _, state = module.apply(variables, x, update_stats=True, mutable="batch_stats")
        w, after = module.apply({**variables, **state}, eye, update_stats=False, mutable="batch_stats")
        jax.tree.map(assert_array_equal, after, state)
        kernel = variables["params"]["layer_instance"]["kernel"]
        assert (error(w, kernel, state["batch_stats"][name + "u"]) < 1e-6) == same, lib
    for lib, same in ((jnnx, True), (nnx, False)):
        wrapped = lib.SpectralNorm(nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        wrapped(x)
        kernel, u = (np.array(v[...]) for v in (wrapped.layer_instance.kernel, wrapped.batch_stats["kernel", "u"]))
        wrapped.eval()
        assert (error(wrapped(eye), kernel, u) < 1e-6) == same, lib
        assert_array_equal(wrapped.batch_stats["kernel", "u"][...], u)


def test_spectral_estimates_are_never_kept_in_half_precision():
    x = data((5, 4))
    state = jnl.SpectralNorm(nn.Dense(3), param_dtype=jnp.bfloat16).init(KEY, x, update_stats=True)["batch_stats"]
    assert {v.dtype for v in state.values()} == {jnp.dtype(jnp.float32)}
    flax_s = nn.SpectralNorm(nn.Dense(3), param_dtype=jnp.bfloat16).init(KEY, x, update_stats=False)["batch_stats"]
    assert {v.dtype for v in flax_s.values()} == {jnp.dtype(jnp.bfloat16)}
    wrapped = jnnx.SpectralNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), param_dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    wrapped(x)
    assert {v[...].dtype for v in wrapped.batch_stats.values()} == {jnp.dtype(jnp.float32)}
    # A half-precision checkpoint of Flax's is widened, not used as it is.
    variables = nn.SpectralNorm(nn.Dense(3), param_dtype=jnp.bfloat16).init(KEY, x, update_stats=False)
    _, new = jnl.SpectralNorm(nn.Dense(3)).apply(variables, x, update_stats=True, mutable="batch_stats")
    assert {v.dtype for v in new["batch_stats"].values()} == {jnp.dtype(jnp.float32)}


def test_partitioned_parameters_may_be_wrapped():
    dense = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.normal(), (None, "model")))
    for module, call in ((jnl.WeightNorm(dense), {}), (jnl.SpectralNorm(dense), {"update_stats": True})):
        kernel = module.init(KEY, data((5, 4)), **call)["params"]["layer_instance"]["kernel"]
        assert kernel.names == (None, "model")


class Inner(nnx.Module):
    """A layer with everything that changes in a call: running statistics, random numbers, a new variable."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = jnnx.BatchNorm(3, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = 0

    def __call__(self, x, extra=0.0):
        x = self.dropout(self.norm(self.dense(x)))
        self.seen, self.calls = nnx.Intermediate(x), self.calls + 1
        return x + extra


def test_what_changes_in_the_wrapped_nnx_layer_is_kept():
    layer = Inner(nnx.Rngs(0))
    wrapped = jnnx.WeightNorm(layer, rngs=nnx.Rngs(1))
    x = data((8, 4))
    first, second = wrapped(x), wrapped(x, extra=1.0)
    assert wrapped.layer_instance is layer
    assert layer.calls == 2
    assert np.abs(first - (second - 1)).max() > 0.1  # another dropout mask
    assert_allclose(layer.seen[...], second - 1, atol=1e-6)
    batch = np.asarray(x @ (layer.dense.kernel[...] / jnp.linalg.norm(layer.dense.kernel[...], axis=0)))
    assert_allclose(layer.norm.mean[...], 0.75 * batch.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_nnx_inference_inside_a_plain_gradient(name):
    """Nothing is written, so a model that is closed over may be differentiated; Flax writes, and raises."""
    x = data((5, 4))
    for lib, works in ((jnnx, True), (nnx, False)):
        model = getattr(lib, name)(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        model.eval()
        saliency = lambda x, model=model: jax.grad(lambda x: jnp.sum(model(x) ** 2))(x)
        if works:
            assert np.isfinite(saliency(x)).all()
        else:
            with pytest.raises(flax.errors.TraceContextError):
                saliency(x)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm", "WeightStandardize"])
def test_transforms(name):
    x = data((3, 5, 4))
    training = {"update_stats": True} if name == "SpectralNorm" else {}
    # Linen: layers stacked by scan, and members of an ensemble by vmap, equal one at a time.
    wrap = getattr(jnl, name)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return wrap(nn.Dense(4))(x, **training), None

    split = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
    stack = nn.scan(nn.remat(Layer), length=3, **split)()
    variables = stack.init(KEY, x[0], None)
    (y, _), state = stack.apply(variables, x[0], None, mutable="batch_stats")
    expected, states = x[0], []
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
        (expected, _), new = Layer().apply(one, expected, None, mutable="batch_stats")
        states.append(new)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, *b: assert_allclose(a, jnp.stack(b), rtol=1e-5, atol=1e-6), state, *states)
    # NNX: an ensemble made and run under vmap; split and merge; eval_shape; jit.
    make = lambda rngs: getattr(jnnx, name)(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
    models = nnx.vmap(make)(nnx.Rngs(0).split(3))
    graph, start = nnx.split(models)
    start = jax.tree.map(jnp.copy, start)
    ys = nnx.jit(nnx.vmap(lambda model, x: model(x)))(models, x)
    for i in range(3):
        model = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], start))
        assert_allclose(ys[i], model(x[i]), rtol=1e-5, atol=1e-5)
        after = jax.tree.map(lambda leaf, i=i: leaf[i], nnx.state(models))
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), nnx.state(model), after)
    assert shapes(nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))))) == shapes(nnx.state(make(nnx.Rngs(0))))


NEEDS_SCALE = "WeightNorm: `start_as_identity` needs a scale; got use_scale=False. Pass use_scale=True."
IDENTITY = {"use_scale": False, "start_as_identity": True}
ERRORS = {
    "jaxnorm.linen: axes must lie within the 2 dimensions; got (3,).": lambda: jnl.WeightNorm(
        nn.Dense(3), feature_axes=3
    ).init(KEY, data((5, 4))),
    "WeightNorm: `feature_axes` must lie within 2 dimensions; got (3,).": lambda: jnnx.WeightNorm(
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)), feature_axes=3, rngs=nnx.Rngs(1)
    ),
    f"{NEEDS_SCALE}": lambda: jnl.WeightNorm(nn.Dense(3), **IDENTITY).init(KEY, data((5, 4))),
    f"{NEEDS_SCALE[:-1]}": lambda: jnnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1), **IDENTITY),
    "SpectralNorm: layer_instance/kernel must be a matrix; got shape (2, 3, 4, 3).": lambda: jnl.SpectralNorm(
        nn.Conv(3, (2, 3)), error_on_non_matrix=True
    ).init(KEY, data((2, 5, 6, 4)), update_stats=True),
    "SpectralNorm: ('kernel',) must be a matrix; got shape (2, 3, 4, 3).": lambda: jnnx.SpectralNorm(
        nnx.Conv(4, 3, (2, 3), rngs=nnx.Rngs(0)), error_on_non_matrix=True, rngs=nnx.Rngs(1)
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        ERRORS[message]()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm", "WeightStandardize"])
def test_a_parameter_that_was_not_there_is_refused(name):
    options = {"scaled": True} if name == "WeightStandardize" else {}
    model = getattr(jnnx, name)(nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0))), rngs=nnx.Rngs(1), **options)
    model.layer_instance.more = nnx.Param(jnp.ones((4, 3)))
    model.layer_instance.kernel = nnx.Param(jnp.ones((4, 3)))
    with pytest.raises(RuntimeError, match=f"{name}: parameters must be those it was made with; got a new one"):
        model(data((5, 4)))
