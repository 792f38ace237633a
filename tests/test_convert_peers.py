"""Real layers of torch, Haiku, Equinox and Keras, converted in mid-training: twenty steps there and here end alike."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose
from test_peers import offset_data, peer  # noqa: F401

import jaxnorm as jn
from jaxnorm import convert

pytestmark = pytest.mark.peers

STEPS, RATE = 20, 0.05
close = {"rtol": 1e-5, "atol": 1e-5}


def run(layer, params, state, x, training, feature_axis=-1):
    """A converted layer by the function of its kind; params hold what trains."""
    scale, bias, options = params.get("scale"), params.get("bias"), dict(layer.options)
    if layer.kind == "batch_norm":
        return jn.batch_norm(x, state, scale, bias, training=training, feature_axis=feature_axis, **options)
    if layer.kind == "layer_norm":
        return jn.layer_norm(x, scale, bias, **options), None
    if layer.kind == "rms_norm":
        y = jn.rms_norm(x, scale, **options)
        return (y if bias is None else y + jnp.expand_dims(bias, (0, 1))), None
    if layer.kind == "group_norm":
        return jn.group_norm(x, scale, bias, feature_axis=feature_axis, **options), None
    assert layer.kind == "instance_norm"
    if state is None:
        return jn.instance_norm(x, scale, bias, feature_axis=feature_axis, **options), None
    if not training:
        return jn.batch_norm(x, state, scale, bias, training=False, feature_axis=feature_axis, **options)
    m = jn.moments(x, tuple(range(2, x.ndim)))  # torch averages the statistics of instances
    m = jn.Moments(m.mean.mean(0), m.var.mean(0), m.count[0])
    y = jn.instance_norm(x, scale, bias, feature_axis=feature_axis, epsilon=options.pop("epsilon"))
    return y, state.update(m, **options)


def parameters(layer):
    return {name: jnp.asarray(a) for name in ("scale", "bias") if (a := getattr(layer, name)) is not None}


def trainer(apply):
    """Gradient descent on the squared distance to a target; apply(params, state, x) -> y, state."""

    @jax.jit
    def step(params, state, x, target):
        def loss(params):
            y, new = apply(params, state, x)
            return jnp.mean((y - target) ** 2), new

        gradients, state_ = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - jnp.asarray(RATE, p.dtype) * g, params, gradients), state_

    def train(params, state, batches):
        for x, target in batches:
            params, state = step(params, state, x, target)
        return params, state

    return train


def draw(shape, feature_axis=-1, n=STEPS):
    rng = np.random.default_rng(5)
    return [(offset_data(rng, shape, feature_axis), offset_data(rng, shape, feature_axis)) for _ in range(n)]


def assert_same(layer, params, state):
    """A layer read from the peer after training is what ours has become."""
    for name in ("scale", "bias"):
        if name in params:
            assert_allclose(params[name], getattr(layer, name), err_msg=name, **close)
    if layer.stats is not None:
        assert_allclose(state.mean, layer.stats.mean, **close)
        assert_allclose(state.var, layer.stats.var, **close)


# -- torch -------------------------------------------------------------------------------------------------------------


def torch_train(module, batches):
    import torch

    optimizer = torch.optim.SGD(module.parameters(), RATE) if list(module.parameters()) else None
    module.train()
    for x, target in batches:
        loss = ((module(torch.from_numpy(x)) - torch.from_numpy(target)) ** 2).mean()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def randomize(module):
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)


def torch_eval(module, x):
    import torch

    with torch.no_grad():
        return module.eval()(torch.from_numpy(x)).numpy()


TORCH = [
    ("BatchNorm1d", (6,), {}, (9, 6), "batch_norm", {}),
    ("BatchNorm1d", (6,), {}, (9, 6, 4), "batch_norm", {}),
    ("BatchNorm2d", (6,), {"eps": 1e-2, "momentum": 0.3}, (4, 6, 3, 5), "batch_norm", {}),
    ("BatchNorm2d", (6,), {"momentum": None}, (4, 6, 3, 5), "batch_norm", {}),
    ("BatchNorm2d", (6,), {"affine": False}, (4, 6, 3, 5), "batch_norm", {}),
    ("BatchNorm3d", (6,), {}, (2, 6, 3, 2, 2), "batch_norm", {}),
    ("LayerNorm", (6,), {"eps": 1e-2}, (4, 3, 6), "layer_norm", {}),
    ("LayerNorm", ((3, 6),), {}, (4, 3, 6), "layer_norm", {}),
    ("LayerNorm", (6,), {"bias": False}, (4, 3, 6), "layer_norm", {}),
    ("RMSNorm", (6,), {}, (4, 3, 6), "rms_norm", {}),
    ("RMSNorm", ((3, 6),), {"eps": 1e-2}, (4, 3, 6), "rms_norm", {}),
    ("GroupNorm", (3, 6), {}, (4, 6, 3, 5), "group_norm", {"num_groups": 3}),
    ("InstanceNorm1d", (6,), {"affine": True}, (4, 6, 9), "instance_norm", {}),
    ("InstanceNorm2d", (6,), {"track_running_stats": True}, (4, 6, 3, 5), "instance_norm", {}),
    ("InstanceNorm3d", (6,), {"affine": True, "track_running_stats": True}, (2, 6, 3, 2, 2), "instance_norm", {}),
]


@pytest.mark.parametrize(("cls", "args", "words", "shape", "kind", "more"), TORCH)
def test_torch_modules_train_on_here(cls, args, words, shape, kind, more):
    import torch

    module = getattr(torch.nn, cls)(*args, **words)
    randomize(module)
    batches = draw(shape, 1 if kind not in ("layer_norm", "rms_norm") else -1, n=STEPS + 5)
    torch_train(module, batches[:5])
    told = more | {word: value for word, value in words.items() if word in ("eps", "momentum")}
    read = lambda: convert.read_layer("torch", module.state_dict(), kind, **told)
    layer = read()
    torch_train(module, batches[5:])
    assert not (layer.scale is not None and np.array_equal(layer.scale, read().scale))  # a copy, and torch trained on
    train = trainer(lambda p, s, x: run(layer, p, s, x, True, feature_axis=1))
    params, stats = train(parameters(layer), layer.stats, batches[5:])
    assert_same(read(), params, stats)
    if kind == "batch_norm":  # torch's instance norm does not count
        assert float(stats.count[0]) == STEPS + 5
    x = batches[0][0]
    y, _ = run(layer, params, stats, x, False, feature_axis=1)
    assert_allclose(y, torch_eval(module, x), **close)


def test_sync_batch_norm_is_a_batch_norm():
    """Its training needs several GPUs; its state and inference do not."""
    import torch

    module = torch.nn.SyncBatchNorm(6)
    randomize(module)
    with torch.no_grad():
        module.running_mean.uniform_(-1, 1)
        module.running_var.uniform_(0.5, 2)
        module.num_batches_tracked.fill_(7)
    layer = convert.read_layer("torch", module.state_dict())
    x = draw((4, 6, 3, 5), 1, 1)[0][0]
    assert layer.stats.count[0] == 7
    assert_allclose(run(layer, parameters(layer), layer.stats, x, False, 1)[0], torch_eval(module, x), **close)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in convert.write("torch", {"": layer}).state.items()})


def effective(layer):
    """The weight in use at inference."""
    if layer.kind == "weight_norm":
        return jn.weight_norm(layer.weight, layer.scale, **layer.options)
    return jn.spectral_norm(layer.weight, layer.spectral, update=False, **layer.options)[0]


LINEAR = ("Linear", (6, 4), {}, (5, 6), (5, 4))
CONV = ("Conv2d", (6, 4, (2, 3)), {"bias": False}, (5, 6, 7, 7), (5, 4, 6, 5))
TRANSPOSED = ("ConvTranspose2d", (4, 4, (2, 3)), {}, (5, 4, 6, 5), (5, 4, 7, 7))


def flax_layout(weight, dim):
    order = {2: (1, 0), 4: (2, 3, 1, 0)}[weight.ndim]
    return weight.transpose(order if dim == 0 else (2, 3, 0, 1))


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize(("norm", "dim"), [("weight_norm", 0), ("weight_norm", None), ("spectral_norm", None)])
@pytest.mark.parametrize("case", [LINEAR, CONV, TRANSPOSED], ids=lambda case: case[0])
def test_weights_of_torch_parametrizations(case, norm, dim, modern):
    import torch

    cls, args, words, shape, out = case
    if norm == "weight_norm" and cls == "ConvTranspose2d" and dim == 0:
        dim = 1
    torch.manual_seed(3)
    wrap = getattr(torch.nn.utils.parametrizations if modern else torch.nn.utils, norm)
    options = {"dim": dim} if norm == "weight_norm" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older weight_norm
        module = wrap(getattr(torch.nn, cls)(*args, **words), **options)
    rng = np.random.default_rng(0)
    batches = [(offset_data(rng, shape), offset_data(rng, out)) for _ in range(STEPS)]
    torch_train(module, batches)
    if norm == "spectral_norm":  # forwards without a step: v is that of the present weight; older ones must converge
        for _ in range(1 if modern else 300):
            module(torch.from_numpy(batches[0][0]))
    layers, left = convert.read("torch", module.state_dict())
    layer = layers[":weight"]
    assert layer.kind == norm
    assert set(left) <= {"bias"}
    torch_eval(module, batches[0][0])  # older functions leave the weight of their last call
    theirs = module.weight.detach().numpy()
    is_transposed = cls == "ConvTranspose2d" and (dim == 1 or norm == "spectral_norm")
    assert_allclose(effective(layer), flax_layout(theirs, 1 if is_transposed else 0), rtol=1e-5, atol=1e-6)
    if norm == "spectral_norm":
        _, state = jn.spectral_norm(layer.weight, layer.spectral, update=True, **layer.options)
        assert_allclose(layer.spectral.sigma, state.sigma, rtol=0.05)
    state = convert.write("torch", layers).state
    if modern:
        for name, value in state.items():
            exact = 0 if not name.endswith("_v") else 2e-7
            assert_allclose(value, module.state_dict()[name].numpy(), rtol=0, atol=exact, err_msg=name)
    back = torch.nn.utils.parametrizations
    fresh = getattr(back, norm)(getattr(torch.nn, cls)(*args, **words), **options)
    fresh.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    assert_allclose(fresh.eval().weight.detach().numpy(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_torch_parametrizations_train_on_here(norm):
    import torch

    torch.manual_seed(1)
    linear = torch.nn.Linear(6, 4, bias=False)
    with torch.no_grad():  # a gap between singular values: power iterations that start elsewhere agree at once
        linear.weight += 3 * torch.outer(torch.ones(4), torch.ones(6))
    module = getattr(torch.nn.utils.parametrizations, norm)(linear)
    rng = np.random.default_rng(0)
    batches = [(offset_data(rng, (9, 6)), offset_data(rng, (9, 4))) for _ in range(STEPS + 5)]
    torch_train(module, batches[:5])
    layer = convert.read("torch", module.state_dict()).layers[":weight"]
    torch_train(module, batches[5:])

    def apply(params, state, x):
        if norm == "weight_norm":
            return x @ jn.weight_norm(params["weight"], params["scale"], **layer.options), None
        w, state = jn.spectral_norm(params["weight"], state, update=True, **layer.options)
        return x @ w, state

    params = parameters(layer) | {"weight": jnp.asarray(layer.weight)}
    params, state = trainer(apply)(params, layer.spectral, batches[5:])
    if norm == "weight_norm":
        ours = jn.weight_norm(params["weight"], params["scale"], **layer.options)
    else:
        ours = jn.spectral_norm(params["weight"], state, update=False, **layer.options)[0]
    assert_allclose(ours, module.eval().weight.detach().numpy().T, **close)


def test_a_whole_torch_model():
    import torch
    from torch import nn

    conv = lambda *args: nn.Conv2d(*args, padding=1, bias=False)
    block = lambda c: nn.Sequential(conv(c, c, 3), nn.BatchNorm2d(c), nn.ReLU(), conv(c, c, 3), nn.BatchNorm2d(c))
    model = nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3), block(8), nn.GroupNorm(4, 8), nn.PReLU(8))
    randomize(model)
    x = draw((4, 3, 6, 6), 1, 1)[0][0]
    with torch.no_grad():
        for _ in range(3):
            model(torch.from_numpy(x))
    model.add_module("5", nn.BatchNorm2d(8))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    told = {"1": {"eps": 1e-3}, "3": {"kind": "group_norm", "num_groups": 4}}
    layers, left = convert.read("torch", state, told)
    assert list(layers) == ["1", "2.1", "2.4", "3", "5"]
    assert left == {
        "0.weight": "no norm",
        "2.0.weight": "no norm",
        "2.3.weight": "no norm",
        "4.weight": "may be a norm: name its kind in `norms`",
    }

    def norm(name, x):
        layer = layers[name]
        return run(layer, parameters(layer), layer.stats, x, False, 1)[0]

    def convolve(name, x):
        return lax.conv_general_dilated(x, state[f"{name}.weight"], (1, 1), "SAME")

    y = norm("1", convolve("0", x))
    y = norm("2.4", convolve("2.3", jax.nn.relu(norm("2.1", convolve("2.0", y)))))
    y = norm("3", y)
    y = norm("5", jnp.where(y > 0, y, y * state["4.weight"].reshape(8, 1, 1)[None]))
    assert_allclose(y, torch_eval(model, x), rtol=1e-4, atol=1e-4)
    written = convert.write("torch", layers, into=state).state
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in written.items()})
    for name, value in state.items():
        assert written[name].dtype == value.dtype
        np.testing.assert_array_equal(written[name], value)


# -- Haiku, Equinox, Keras: apply(params, state, x, training) -> y, state; mapping(params, state) ----------------------


def haiku_layer(make, x):
    import haiku as hk

    transformed = hk.without_apply_rng(hk.transform_with_state(lambda x, training: make(hk, x, training)))
    params, state = transformed.init(None, x, True)
    apply = lambda params, state, x, training: transformed.apply(params, state, x, training)
    mapping = lambda params, state: {"params": params, "state": state}
    return apply, params, state, mapping, lambda params, state, written: (written["params"], written["state"])


def equinox_layer(make, x):
    import equinox as eqx

    layer, state = eqx.nn.make_with_state(lambda: make(eqx.nn))()
    params, static = eqx.partition(layer, eqx.is_inexact_array)
    stateful = isinstance(layer, eqx.nn.BatchNorm)
    per_sample = isinstance(layer, (eqx.nn.BatchNorm, eqx.nn.GroupNorm))  # which have features first

    def apply(params, state, x, training):
        module = eqx.nn.inference_mode(eqx.combine(params, static), not training)
        if stateful:
            y, state = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
                jnp.moveaxis(x, -1, 1), state
            )
            return jnp.moveaxis(y, 1, -1), state
        if per_sample:
            return jax.vmap(lambda x: jnp.moveaxis(module(jnp.moveaxis(x, -1, 0)), 0, -1))(x), state
        return jax.vmap(jax.vmap(module))(x), state

    def mapping(params, state):
        arrays = {"weight": params.weight, "bias": params.bias}
        for name in ("batch_state_index", "batch_counter") if stateful else ():
            arrays[name] = state.get(getattr(layer, name))
        return arrays

    def fill(params, state, written):
        params = eqx.tree_at(lambda p: (p.weight, p.bias), params, (written["weight"], written["bias"]))
        for name in ("batch_state_index", "batch_counter"):
            state = state.set(getattr(layer, name), written[name])
        return params, state

    return apply, params, state, mapping, fill


def keras_layer(make, x):
    import keras

    layer = make(keras.layers)
    layer.build(x.shape)
    params, state = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))

    def apply(params, state, x, training):
        return layer.stateless_call(params, state, x, **({"training": training} if state else {}))

    def mapping(params, state):
        pairs = zip(layer.trainable_variables + layer.non_trainable_variables, [*params, *state], strict=True)
        return {variable.path: value for variable, value in pairs}

    return apply, params, state, mapping, None


PEERS = [
    ("haiku", lambda hk, x, t: hk.BatchNorm(True, True, 0.9)(x, t), None, {"decay_rate": 0.9}),
    ("haiku", lambda hk, x, t: hk.BatchNorm(True, False, 0.5, 1e-2)(x, t), None, {"decay_rate": 0.5, "eps": 1e-2}),
    ("haiku", lambda hk, x, t: hk.LayerNorm(-1, True, True)(x), None, {"axis": -1}),
    ("haiku", lambda hk, x, t: hk.RMSNorm(-1, 1e-2)(x), None, {"axis": -1, "eps": 1e-2}),
    ("haiku", lambda hk, x, t: hk.GroupNorm(3)(x), None, {"groups": 3}),
    ("haiku", lambda hk, x, t: hk.InstanceNorm(True, True)(x), None, {}),
    ("equinox", lambda nn: nn.BatchNorm(6, "batch", mode="batch"), None, {}),
    ("equinox", lambda nn: nn.BatchNorm(6, "batch", 1e-2, momentum=0.5, mode="batch"), None, {"eps": 1e-2, "momentum": 0.5}),
    ("equinox", lambda nn: nn.LayerNorm(6), "layer_norm", {}),
    ("equinox", lambda nn: nn.RMSNorm(6), "rms_norm", {}),
    ("equinox", lambda nn: nn.GroupNorm(3, 6), "group_norm", {"groups": 3}),
    ("keras", lambda layers: layers.BatchNormalization(), None, {}),
    ("keras", lambda layers: layers.BatchNormalization(momentum=0.5, epsilon=1e-2, scale=False), None, {"momentum": 0.5, "epsilon": 1e-2}),
    ("keras", lambda layers: layers.LayerNormalization(), "layer_norm", {}),
    ("keras", lambda layers: layers.RMSNormalization(), "rms_norm", {}),
    ("keras", lambda layers: layers.GroupNormalization(3), "group_norm", {"groups": 3}),
    ("keras", lambda layers: layers.GroupNormalization(-1), "group_norm", {"groups": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("framework", "make", "kind", "words"), PEERS)
def test_layers_of_jax_frameworks_train_on_here(framework, make, kind, words, peer):  # noqa: F811
    batches = draw((4, 7, 6), n=STEPS + 5)
    x = batches[0][0]
    build = {"haiku": haiku_layer, "equinox": equinox_layer, "keras": keras_layer}[framework]
    apply, params, state, mapping, _ = peer(build, make, x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: rng.uniform(0.5, 1.5, p.shape).astype(np.float32), params)
    train = trainer(lambda p, s, x: apply(p, s, x, True))
    params, state = peer(train, params, state, batches[:5])
    layer = read_one(framework, mapping(params, state), kind, words)
    params, state = peer(train, params, state, batches[5:])
    ours, stats = trainer(lambda p, s, x: run(layer, p, s, x, True))(parameters(layer), layer.stats, batches[5:])
    after = read_one(framework, mapping(params, state), kind, words)
    assert_same(after, ours, stats)
    y, _ = run(layer, ours, stats, x, False)
    assert_allclose(y, peer(apply, params, state, x, False)[0], **close)
    if stats is not None and framework != "keras":
        assert float(stats.count[0]) == float(after.stats.count[0]) == STEPS + 5


def read_one(framework, mapping, kind, words):
    told = words | ({"kind": kind} if kind else {})
    (layer,) = convert.read(framework, mapping, {"*": told} if told else None).layers.values()
    return layer


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("framework", ["haiku", "equinox"])
def test_what_is_written_trains_on_there(framework, debias, peer):  # noqa: F811
    """A debiased average, and a plain one, which these frameworks do not have, go on in them as they would here."""
    batches = draw((4, 7, 6), n=STEPS + 3)
    rng = np.random.default_rng(2)
    scale, bias = rng.uniform(0.5, 1.5, (2, 6)).astype(np.float32)
    options = {"momentum": 0.9, "epsilon": 1e-5, "ddof": 0, "debias": debias}
    stats = jn.RunningStats.init(6)
    for x, _ in batches[:3]:
        _, stats = jn.batch_norm(x, stats, training=True, **options)
    layer = convert.Layer("batch_norm", scale, bias, stats, options=options)
    make = {
        "haiku": lambda hk, x, t: hk.BatchNorm(True, True, 0.9)(x, t),
        "equinox": lambda nn: nn.BatchNorm(6, "batch", momentum=0.9, mode="batch"),
    }[framework]
    build = {"haiku": haiku_layer, "equinox": equinox_layer}[framework]
    apply, params, state, mapping, fill = peer(build, make, batches[0][0])
    written, arguments, lost = convert.write(
        framework, {"batch_norm" if framework == "haiku" else "": layer}, into=mapping(params, state)
    )
    assert lost == {}
    assert next(iter(arguments.values())) == {"decay_rate" if framework == "haiku" else "momentum": 0.9, "eps": 1e-5}
    params, state = peer(fill, params, state, written)
    params, state = peer(trainer(lambda p, s, x: apply(p, s, x, True)), params, state, batches[3:])
    ours, stats = trainer(lambda p, s, x: run(layer, p, s, x, True))(parameters(layer), stats, batches[3:])
    x = batches[0][0]
    y, _ = run(layer, ours, stats, x, False)
    assert_allclose(y, peer(apply, params, state, x, False)[0], **close)


def test_weights_of_equinox_wrappers(peer):  # noqa: F811
    import equinox as eqx

    key = jax.random.key(0)
    conv = eqx.nn.Conv2d(3, 4, 2, use_bias=False, key=key)
    weight_norm = eqx.tree_at(lambda m: m.g, eqx.nn.WeightNorm(conv), 1.5 + jnp.arange(4.0).reshape(4, 1, 1, 1))
    spectral, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
        eqx.nn.Linear(3, 4, use_bias=False, key=key), "weight", key=key
    )
    mapping = {
        "wn": {"layer": {"weight": weight_norm.layer.weight}, "g": weight_norm.g},
        "sn": {"layer": {"weight": spectral.layer.weight}, "uv_index": state.get(spectral.uv_index)},
    }
    layers, left = convert.read("equinox", mapping)
    assert left == {}
    rng = np.random.default_rng(0)
    image, row = rng.normal(size=(3, 5, 5)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    theirs = peer(weight_norm, image)
    ours = lax.conv_general_dilated(
        image[None], effective(layers["wn:weight"]), (1, 1), "VALID", dimension_numbers=("NCHW", "HWIO", "NCHW")
    )
    assert_allclose(ours[0], theirs, **close)
    assert_allclose(row @ effective(layers["sn:weight"]), peer(spectral, row, state, inference=True)[0], **close)
    written = convert.write("equinox", layers, into=mapping).state
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=0, atol=1e-6), written, mapping)


def test_keras_keeps_the_divided_kernel(peer):  # noqa: F811
    """What is written infers there as here: Keras does not divide in inference, so the kernel is divided already."""
    import keras

    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    _, state = jn.spectral_norm(weight, jn.SpectralState.init(jax.random.key(0), 4), update=True, n_steps=30)
    layer = convert.Layer("spectral_norm", weight=weight, spectral=state, options={"n_steps": 1, "epsilon": 1e-12})
    wrapper = keras.layers.SpectralNormalization(keras.layers.Dense(4, use_bias=False))
    wrapper.build(x.shape)
    variables = {v.path: v for v in wrapper.variables}
    name = next(path for path in variables if path.endswith("kernel")).replace("/", ":", 1)
    written, arguments, lost = convert.write(
        "keras", {name: layer}, into={p: np.asarray(v) for p, v in variables.items()}
    )
    assert arguments == {name: {"power_iterations": 1}}
    assert lost == {name: {"epsilon": 1e-12}}
    for path, variable in variables.items():
        variable.assign(written[path])
    expected = peer(wrapper, x, training=False)
    assert_allclose(x @ effective(layer), expected, **close)
    peer(wrapper, x, training=True)
    again = convert.read("keras", {p: np.asarray(v) for p, v in variables.items()}).layers[name]
    assert_allclose(x @ effective(again), peer(wrapper, x, training=False), **close)


def test_haiku_spectral_norm_goes_on_here(peer):  # noqa: F811
    import haiku as hk

    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    transformed = hk.without_apply_rng(hk.transform_with_state(lambda w: hk.SpectralNorm()(w)))
    _, state = peer(transformed.init, jax.random.key(0), weight)
    layer = convert.read("haiku", {"params": {}, "state": state}).layers["spectral_norm"]
    theirs, after = peer(transformed.apply, {}, state, weight)
    ours, spectral = jn.spectral_norm(weight, layer.spectral, update=True, **layer.options)
    assert_allclose(ours, theirs, **close)
    assert_allclose(spectral.u, after["spectral_norm"]["u0"][0], **close)
    written = convert.write("haiku", {"spectral_norm": layer}).state
    jax.tree.map(np.testing.assert_array_equal, written["state"], state)
