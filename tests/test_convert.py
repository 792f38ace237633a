"""Conversion without the peers: what their states look like, written by hand; every bit, every report, every refusal."""

import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn
from jaxnorm import convert

rng = np.random.default_rng(0)


def draw(*shape, low=0.5, high=2.0):
    return rng.uniform(low, high, shape).astype(np.float32)


def count(n):
    return np.asarray(n, np.int64)


def flat(state, prefix=()):
    """path -> array of any nesting."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {prefix: state}
    return {path: a for key, child in items for path, a in flat(child, (*prefix, key)).items()}


def ema(average, decay, t):
    """Haiku's variables of one moving average."""
    return {"average": average, "hidden": average * np.float32(1 - decay**t), "counter": np.asarray(t, np.int32)}


def torch_state():
    w, u = draw(4, 6, 2, 3), draw(4)
    v = u @ w.reshape(4, -1)
    return {
        "layer1.0.bn1.weight": draw(8),
        "layer1.0.bn1.bias": draw(8),
        "layer1.0.bn1.running_mean": draw(8),
        "layer1.0.bn1.running_var": draw(8),
        "layer1.0.bn1.num_batches_tracked": count(12),
        "plain.running_mean": draw(3),
        "plain.running_var": draw(3),
        "plain.num_batches_tracked": count(5),
        "inst.running_mean": draw(3),
        "inst.running_var": draw(3),
        "inst.num_batches_tracked": count(0),
        "ln.weight": draw(3, 5),
        "ln.bias": draw(3, 5),
        "rms.weight": draw(5),
        "gn.weight": draw(6),
        "gn.bias": draw(6),
        "fc.parametrizations.weight.original0": draw(5, 1),
        "fc.parametrizations.weight.original1": draw(5, 3),
        "whole.parametrizations.weight.original0": draw(),
        "whole.parametrizations.weight.original1": draw(5, 3),
        "up.parametrizations.weight.original0": draw(1, 3, 1, 1),
        "up.parametrizations.weight.original1": draw(5, 3, 2, 4),
        "conv.parametrizations.weight.original": w,
        "conv.parametrizations.weight.0._u": u,
        "conv.parametrizations.weight.0._v": v / np.linalg.norm(v),
    }


def haiku_state():
    params = {
        "net/~/batch_norm": {"scale": draw(1, 1, 1, 8), "offset": draw(1, 1, 1, 8)},
        "net/layer_norm": {"scale": draw(5), "offset": draw(5)},
        "net/rms_norm_1": {"scale": draw(5)},
        "net/group_norm": {"scale": draw(6), "offset": draw(6)},
        "net/instance_norm": {"scale": draw(6), "offset": draw(6)},
    }
    state = {
        "net/~/batch_norm/~/mean_ema": ema(draw(1, 1, 1, 8), 0.9, 7),
        "net/~/batch_norm/~/var_ema": ema(draw(1, 1, 1, 8), 0.9, 7),
        "net/spectral_norm": {"u0": draw(1, 7), "sigma": draw()},
    }
    return {"params": params, "state": state}


def flax_state():
    params = {
        "Block_0": {"BatchNorm_0": {"scale": draw(8), "bias": draw(8)}, "LayerNorm_0": {"scale": draw(5)}},
        "RMSNorm_0": {"scale": draw(3, 5)},
        "GroupNorm_0": {"scale": draw(64), "bias": draw(64)},
        "InstanceNorm_3": {"scale": draw(5), "bias": draw(5)},
        "Dense_0": {"kernel": draw(3, 4)},
        "WeightNorm_0": {"Dense_0/kernel/scale": draw(4)},
        "sn": {"layer_instance": {"kernel": draw(2, 3, 4)}},
        "deep": {"Conv_0": {"kernel": draw(2, 3, 4)}},
    }
    stats = {
        "Block_0": {"BatchNorm_0": {"mean": draw(8), "var": draw(8)}},
        "counted": {"mean": draw(4), "var": draw(4), "count": draw(4) // 1},
        "sn": {"layer_instance/kernel/u": draw(1, 4), "layer_instance/kernel/sigma": draw()},
        "deep": {"SpectralNorm_0": {"Conv_0/kernel/u": draw(1, 4), "Conv_0/kernel/sigma": draw()}},
    }
    return {"params": params, "batch_stats": stats}


def nnx_state():
    return {
        "blocks": {0: {"bn": {"mean": draw(8), "var": draw(8), "scale": draw(8)}}, 1: {"scale": draw(5)}},
        "wn": {"layer_instance": {"kernel": draw(3, 4)}, "scales": {("kernel",): draw(4)}},
        "sn": {
            "layer_instance": {"kernel": draw(2, 3, 4)},
            "batch_stats": {("kernel", "u"): draw(1, 4), ("kernel", "sigma"): draw()},
        },
    }


def equinox_state():
    hidden = (draw(8) * np.float32(1 - 0.99**7), draw(8))
    w, u = draw(4, 6), draw(4)
    v = u @ w
    return {
        "bn.weight": draw(8),
        "bn.bias": draw(8),
        "bn.batch_state_index.0": hidden[0],
        "bn.batch_state_index.1": hidden[1],
        "bn.batch_counter": np.asarray(7, np.int32),
        "layers.1.weight": draw(5),
        "layers.1.bias": draw(5),
        "wn.layer.weight": draw(5, 3, 2),
        "wn.g": draw(5, 1, 1),
        "sn.layer.weight": w,
        "sn.uv_index.0": u,
        "sn.uv_index.1": v / np.linalg.norm(v),
    }


def keras_state():
    return {
        "seq/batch_normalization/gamma": draw(8),
        "seq/batch_normalization/moving_mean": draw(8),
        "seq/batch_normalization/moving_variance": draw(8),
        "seq/layer_normalization_1/gamma": draw(3, 5),
        "seq/layer_normalization_1/beta": draw(3, 5),
        "seq/rms_normalization/scale": draw(5),
        "seq/group_normalization/gamma": draw(64),
        "seq/group_normalization/beta": draw(64),
    }


STATES = {
    "torch": (
        torch_state,
        {
            "ln": "layer_norm",
            "rms": {"kind": "rms_norm", "eps": 1e-3},
            "gn": {"kind": "group_norm", "num_groups": 3},
            "plain": {"momentum": None},
            "inst": "instance_norm",
        },
    ),
    "haiku": (
        haiku_state,
        {"*batch_norm": {"decay_rate": 0.9}, "*group_norm": {"groups": 3}, "net/[lr]*": {"axis": -1}},
    ),
    "flax": (flax_state, {"counted": {"debias": True}}),
    "nnx": (nnx_state, {"blocks/1": "layer_norm"}),
    "equinox": (equinox_state, {"layers.1": "rms_norm"}),
    "keras": (keras_state, {}),
}
MADE_ANEW = ("_v", "hidden", "uv_index.1", "batch_state_index.0", "batch_state_index.1")  # to rounding


@pytest.mark.parametrize("framework", STATES)
@pytest.mark.parametrize("into", [True, False])
def test_reading_and_writing_back_changes_nothing(framework, into):
    make, norms = STATES[framework]
    state = make()
    before = {path: np.array(a) for path, a in flat(state).items()}
    layers, left = convert.read(framework, state, norms)
    assert left == {}
    if framework == "haiku" and not into:  # whose statistics have the dimensions of x
        layers = {name: layer for name, layer in layers.items() if layer.stats is None}
    written, _, lost = convert.write(framework, layers, into=state if into else None)
    assert lost == {}
    after = flat(written)
    assert set(after) == set(before) if framework != "haiku" or into else set(after) < set(before)
    for path, a in after.items():
        assert a.dtype == before[path].dtype or path[-1].endswith(("counter", "tracked"))
        ulps = 4e-7 if str(path[-1]).endswith(MADE_ANEW) else 0
        assert_allclose(a, before[path], rtol=ulps, atol=0, err_msg=str(path))
        assert_array_equal(flat(state)[path], before[path])


@pytest.mark.parametrize("framework", STATES)
def test_flat_names_are_as_good_as_nested(framework):
    make, norms = STATES[framework]
    state = make()
    separators = {"torch": ".", "equinox": "./", "haiku": "/", "keras": "/"}.get(framework, "./")
    piece = lambda key: separators[0].join(map(str, key)) if isinstance(key, tuple) else str(key)
    names = {separators[-1].join(map(piece, path)): a for path, a in flat(state).items()}
    nested = {}
    for name, a in names.items():
        *path, last = name.split(separators[-1])
        node = nested
        for key in path:
            node = node.setdefault(key, {})
        node[last] = a
    expected, _ = convert.read(framework, state, norms)
    for other in (names, nested):
        layers, left = convert.read(framework, other, norms)
        assert left == {}
        assert set(layers) == set(expected)
        for name, layer in layers.items():
            assert layer.kind == expected[name].kind
            assert layer.options == expected[name].options
            jax.tree.map(assert_array_equal, arrays_of(layer), arrays_of(expected[name]))


def arrays_of(layer):
    return [layer.scale, layer.bias, layer.stats, layer.weight, layer.spectral]


ELSEWHERE = [
    ("batch_norm", {"momentum": 0.9, "epsilon": 1e-3, "ddof": 0, "debias": False}),
    ("layer_norm", {"epsilon": 1e-3}),
    ("rms_norm", {"epsilon": 1e-3}),
    ("group_norm", {"epsilon": 1e-3, "num_groups": 2}),
    ("instance_norm", {"epsilon": 1e-3}),
    ("weight_norm", {"epsilon": 1e-3, "axis": (0, 1)}),
    ("spectral_norm", {"epsilon": 1e-12, "n_steps": 2}),
]


def a_layer(kind, options):
    scale, bias = draw(4), draw(4)
    if kind == "batch_norm":
        stats = jn.RunningStats(draw(4), draw(4), np.full(4, 3, np.float32))
        return convert.Layer(kind, scale, bias, stats, options=options)
    if kind == "weight_norm":
        return convert.Layer(kind, scale, weight=draw(2, 3, 4), options=options)
    if kind == "spectral_norm":
        weight, u = draw(2, 3, 4), draw(4)
        u /= np.linalg.norm(u)
        sigma = np.linalg.norm(weight.reshape(-1, 4) @ u)
        return convert.Layer(kind, weight=weight, spectral=jn.SpectralState(u, sigma), options=options)
    return convert.Layer(kind, scale, None if kind == "rms_norm" else bias, options=options)


HAS = {
    "torch": {kind for kind, _ in ELSEWHERE},
    "flax": {kind for kind, _ in ELSEWHERE},
    "nnx": {kind for kind, _ in ELSEWHERE},
    "haiku": {"batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"},
    "equinox": {"batch_norm", "layer_norm", "rms_norm", "group_norm", "weight_norm", "spectral_norm"},
    "keras": {"batch_norm", "layer_norm", "rms_norm", "group_norm"},
}


@pytest.mark.parametrize("framework", HAS)
@pytest.mark.parametrize(("kind", "options"), ELSEWHERE, ids=[kind for kind, _ in ELSEWHERE])
def test_through_any_framework_and_back(framework, kind, options):
    """Arrays keep every bit, options come back from the words, and what got lost is what was said to be."""
    layer = a_layer(kind, options)
    name = {"weight_norm": "a:b", "spectral_norm": "a:b"}.get(kind, "a")
    if kind not in HAS[framework]:
        if (framework, kind) not in [("haiku", "spectral_norm"), ("keras", "spectral_norm")]:
            with pytest.raises(ValueError, match=f"^convert: {framework} must have the kind of '{name}'; got"):
                convert.write(framework, {name: layer})
        return
    if framework == "flax" and kind == "weight_norm":
        name = "x/a:b"
    into = None
    if framework == "haiku" and kind == "batch_norm":
        averages = {f"a/~/{role}_ema": ema(np.zeros((1, 4)), 0, 1) for role in ("mean", "var")}
        into = {"params": {"a": {"scale": np.ones((1, 4)), "offset": np.ones((1, 4))}}, "state": averages}
    state, arguments, lost = convert.write(framework, {name: layer}, into)
    back = convert.read(
        framework, state, {"*": arguments[name] | {"kind": kind}} if kind not in NAMED else told(arguments[name])
    ).layers[name]
    kept = {o: v for o, v in back.options.items() if o != "axis" or kind == "weight_norm"}
    assert set(kept) == set(options)
    differing = {
        option: value
        for option, value in options.items()
        if not np.isclose(*map(as_number, (kept[option], value)), rtol=1e-12)
    }
    assert differing == lost.get(name, {}) | (
        {"debias": False} if framework in ("haiku", "equinox") and kind == "batch_norm" else {}
    )
    for part in ("scale", "bias", "weight"):
        jax.tree.map(assert_array_equal, getattr(back, part), getattr(layer, part))
    for part in ("stats", "spectral"):
        state = getattr(layer, part)
        if state is not None:
            for field, value in state._asdict().items():
                if field == "count":
                    continue
                exact = framework != "equinox" and field != "sigma"
                assert_allclose(getattr(getattr(back, part), field), value, rtol=0 if exact else 4e-7)


NAMED = ("weight_norm", "spectral_norm", "batch_norm")


def told(arguments):
    return {"*": arguments} if arguments else {}


def as_number(value):
    return np.asarray(value, np.float64).sum()


def test_layers_are_copies():
    """A framework that trains on, or a user who writes into the state, changes no layer; and the reverse."""
    state = torch_state()
    layers, _ = convert.read("torch", state, STATES["torch"][1])
    before = [jax.tree.map(np.copy, arrays_of(layer)) for layer in layers.values()]
    for a in state.values():
        a[...] = 77
    jax.tree.map(assert_array_equal, [arrays_of(layer) for layer in layers.values()], before)


def test_conventions_become_keywords():
    state = {"running_mean": draw(3), "running_var": draw(3), "num_batches_tracked": count(9)}
    layer = convert.read_layer("torch", state, momentum=0.3)
    assert layer.options == {"momentum": 0.7, "epsilon": 1e-5, "ddof": 1, "debias": False}
    assert_array_equal(layer.stats.count, np.full(3, 9, np.float32))
    assert convert.read_layer("torch", state, momentum=None).options["momentum"] is None
    assert convert.read_layer("torch", state, "instance_norm").options["ddof"] == 1
    assert convert.read_layer("torch", state, "instance_norm", momentum=None).options["momentum"] == 1.0
    assert convert.read_layer("torch", {"weight": draw(3)}, "rms_norm").options == {"epsilon": 2.0**-23}
    assert convert.read_layer("torch", {"weight": np.ones(3)}, "rms_norm").options == {"epsilon": 2.0**-52}
    assert convert.read_layer("torch", {"weight": draw(2, 3)}, "layer_norm").options == {
        "epsilon": 1e-5,
        "axis": (-2, -1),
    }
    assert convert.read_layer("torch", {"weight": draw(3)}, "instance_norm").options == {"epsilon": 1e-5}
    assert convert.read_layer("keras", {"gamma": draw(6)}, "group_norm", groups=-1).options["num_groups"] == 6


def test_the_first_pattern_that_matches_counts():
    state = {
        f"{name}.{part}": a
        for name in ("a1", "a2")
        for part, a in (("running_mean", draw(3)), ("running_var", draw(3)))
    }
    layers, _ = convert.read("torch", state, {"a1": {"eps": 1e-2}, "a*": {"eps": 1e-3}})
    assert [layer.options["epsilon"] for layer in layers.values()] == [1e-2, 1e-3]


def test_half_precision_statistics_are_widened():
    state = {
        "running_mean": draw(3).astype(np.float16),
        "running_var": draw(3).astype(np.float16),
        "weight": draw(3).astype(np.float16),
    }
    layer = convert.read_layer("torch", state)
    assert layer.stats.mean.dtype == layer.stats.var.dtype == np.float32
    assert layer.scale.dtype == np.float16
    x = draw(5, 3)
    jn.batch_norm(x, layer.stats, layer.scale.astype(np.float32), training=True, **layer.options)
    wide = convert.read_layer("torch", {name: a.astype(np.float64) for name, a in state.items()})
    assert wide.stats.mean.dtype == wide.scale.dtype == np.float64


def test_haiku_sums_are_those_of_its_formula():
    """hidden and average, as Haiku's moving average makes them, from a debiased state of ours."""
    decay, batches = 0.8, draw(5, 4)
    stats = jn.RunningStats.init(4)
    for x in batches:
        stats = stats.update(jn.Moments(x, 2 * x, np.full(4, 9, np.float32)), momentum=decay, debias=True)
    hidden = np.zeros(4)
    for x in batches:
        hidden = hidden * decay + x * (1 - decay)
    layer = convert.Layer("batch_norm", stats=stats, options={"momentum": decay, "debias": True})
    blank = {
        f"bn/~/{role}_ema": {"average": np.zeros((1, 4)), "hidden": np.zeros((1, 4)), "counter": count(0)}
        for role in ("mean", "var")
    }
    state = convert.write("haiku", {"bn": layer}, into={"params": {}, "state": blank}).state["state"]
    for role, factor in (("mean", 1), ("var", 2)):
        mine = state[f"bn/~/{role}_ema"]
        assert mine["counter"] == 5
        assert_allclose(mine["hidden"][0], factor * hidden, rtol=1e-6)
        assert_allclose(mine["average"][0], factor * hidden / (1 - decay**5), rtol=1e-6)
    plain = dataclasses.replace(layer, options={"momentum": decay, "debias": False})
    mine = convert.write("haiku", {"bn": plain}, into={"params": {}, "state": blank}).state["state"]["bn/~/mean_ema"]
    assert_array_equal(mine["hidden"], mine["average"])  # nothing is left to debias
    assert mine["counter"] > 5


def test_equinox_is_read_as_it_infers():
    hidden, t = (draw(4), draw(4)), 7
    state = {"batch_state_index": hidden, "batch_counter": np.asarray(t, np.int32), "weight": draw(4), "bias": draw(4)}
    layer = convert.read_layer("equinox", state, momentum=0.9)
    assert_allclose(layer.stats.mean, hidden[0] / (1 - 0.9**t), rtol=1e-6)
    assert_allclose(layer.stats.var, hidden[1] / (1 - 0.9**t), rtol=1e-6)
    assert layer.options["debias"]
    fresh = convert.read_layer("equinox", state | {"batch_counter": np.asarray(0)})
    assert_array_equal(fresh.stats.mean, hidden[0])
    running = {"ema_state_index": hidden, "ema_first_time_index": np.asarray(False)}
    layer = convert.read_layer("equinox", running)
    assert_array_equal(layer.stats.var, hidden[1])
    assert not layer.options["debias"]
    first = convert.read_layer("equinox", running | {"ema_first_time_index": np.asarray(True)})
    assert_array_equal(first.stats.var, np.ones(4))  # what Equinox has there is uninitialized memory
    assert_array_equal(first.stats.mean, np.zeros(4))


def test_what_is_lost_is_reported():
    stats = jn.RunningStats(draw(4), draw(4), np.full(4, 3, np.float32))
    layer = convert.Layer(
        "batch_norm", stats=stats, options={"momentum": None, "epsilon": 1e-5, "ddof": 1, "debias": False}
    )
    assert convert.write("torch", {"": layer})[1:] == ({"": {"eps": 1e-5, "momentum": None}}, {})
    assert convert.write("keras", {"": layer})[1:] == ({"": {"epsilon": 1e-5}}, {"": {"momentum": None, "ddof": 1}})
    _, arguments, lost = convert.write("flax", {"": layer})
    assert (arguments, lost) == ({"": {"momentum": None, "epsilon": 1e-5, "ddof": 1}}, {})
    wn = convert.Layer("weight_norm", draw(4), weight=draw(3, 4), options={"axis": (0,), "epsilon": 1e-12})
    assert convert.write("torch", {"a:weight": wn}).lost == {"a:weight": {"epsilon": 1e-12}}
    ln = convert.Layer("layer_norm", draw(4), options={"axis": (1, 2)})
    assert convert.write("torch", {"": ln})[1:] == (
        {"": {"eps": 1e-6}},
        {"": {"axis": (1, 2)}},
    )  # epsilon as the function's
    assert convert.write("haiku", {"": ln})[1:] == ({"": {"axis": (1, 2), "eps": 1e-6}}, {})


def test_what_is_left_alone_is_reported():
    state = {
        "embed.weight": draw(9, 4),
        "norm.weight": draw(4),
        "norm.bias": draw(4),
        "head.weight": draw(2, 4),
        "head.bias": draw(2),
        "head._extra_state": "anything",
        "half.parametrizations.weight.original": draw(3, 3),
        "half.parametrizations.weight.0.base": draw(3, 3),
        "bn.running_mean": draw(4),
        "bn.running_var": draw(4),
        "bn.renorm": draw(4),
    }
    layers, left = convert.read("torch", state)
    assert list(layers) == ["bn"]
    maybe = "may be a norm: name its kind in `norms`"
    expected = {name: "no norm" for name in state if not name.startswith("bn.running")}
    assert left == expected | {"norm.weight": maybe, "norm.bias": maybe, "head._extra_state": "no array"}
    tree = {
        "norm": {"scale": draw(4)},
        "fc": {"kernel": draw(4, 2), "bias": draw(2)},
        "key": jax.random.key(0),
        "none": None,
    }
    assert convert.read("nnx", tree).left == {
        "norm/scale": maybe,
        "fc/kernel": "no norm",
        "fc/bias": "no norm",
        "key": "no array",
    }


bn = {"bn.weight": draw(4), "bn.bias": draw(4), "bn.running_mean": draw(4), "bn.running_var": draw(4)}
sn = {
    f"fc.parametrizations.weight.{k}": a for k, a in {"original": draw(4, 3), "0._u": draw(4), "0._v": draw(3)}.items()
}
wn = {"fc.parametrizations.weight.original0": draw(4, 1), "fc.parametrizations.weight.original1": draw(4, 3)}
hk = haiku_state()
bn_layer = a_layer("batch_norm", {"momentum": 0.9})
without = lambda state, name: {key: a for key, a in state.items() if key != name}
haiku_without = {**hk, "state": {name: without(v, "hidden") for name, v in hk["state"].items()}}
haiku_told = STATES["haiku"][1]

ROWS = [
    # names and kinds
    (lambda: convert.read("pytorch", bn), "convert: `framework` must be one that is known; got 'pytorch'. Known: torch, flax, nnx, haiku, equinox, keras."),
    (lambda: convert.write("pytorch", {}), "convert: `framework` must be one that is known; got 'pytorch'. Known: torch, flax, nnx, haiku, equinox, keras."),
    (lambda: convert.read("torch", bn, {"bn": "BatchNorm2d"}), "convert: torch must have the kind that 'bn' is said to be; got 'BatchNorm2d'. It has batch_norm, instance_norm, layer_norm, rms_norm, group_norm, weight_norm, spectral_norm."),
    (lambda: convert.read("haiku", hk, {"*": "weight_norm"}), "convert: haiku must have the kind that '*' is said to be; got 'weight_norm'. It has batch_norm, layer_norm, rms_norm, group_norm, instance_norm, spectral_norm."),
    (lambda: convert.read("torch", bn, {"bn": "layer_norm"}), "convert: 'bn' must be of a kind that has its parts; got kind 'layer_norm' for bias, mean, scale, var. It looks like batch_norm or instance_norm."),
    (lambda: convert.read("torch", {"a.weight": draw(3)}, {"a": "weight_norm"}), "convert: 'a' must be of a kind that has its parts; got kind 'weight_norm' for scale. Leave it out."),
    (lambda: convert.read("torch", bn, {"bn2": "batch_norm"}), "convert: every name in `norms` must fit a norm; got 'bn2', which fits none. Check the name, or say its kind: see `left` of a read without `norms`."),
    (lambda: convert.read("torch", {"ln.weight": draw(3)}, {"ln": {"eps": 1.0}}), "convert: every name in `norms` must fit a norm; got 'ln', which fits none. Check the name, or say its kind: see `left` of a read without `norms`."),
    (lambda: convert.read("torch", bn, {"bn": {"epsilon": 1e-3}}), "convert: 'bn' must be described in the words of torch's batch_norm; got 'epsilon'. Known: eps, momentum."),
    (lambda: convert.read("torch", {"gn.weight": draw(4)}, {"gn": "group_norm"}), "convert: 'gn' needs `num_groups`, for which torch has no default; got none. Say norms={'gn': {'kind': 'group_norm', 'num_groups': ...}}."),
    (lambda: convert.read("haiku", hk), "convert: 'net/~/batch_norm' needs `decay_rate`, for which haiku has no default; got none. Say norms={'net/~/batch_norm': {'kind': 'batch_norm', 'decay_rate': ...}}."),
    (lambda: convert.read_layer("torch", bn | {"fc.weight": draw(2, 4)}), "convert: `state` must be that of one norm; got 1 and fc.weight besides. Pass `kind` if the state does not tell, or use read."),
    (lambda: convert.read_layer("torch", {"weight": draw(4)}), "convert: `state` must be that of one norm; got 0 and weight besides. Pass `kind` if the state does not tell, or use read."),
    # shapes and parts
    (lambda: convert.read("torch", bn | {"bn.running_var": draw(2)}), "convert: 'bn.running_var' must have shape (4,), like running_mean; got (2,). All arrays of a batch_norm describe the same features."),
    (lambda: convert.read("torch", bn | {"bn.bias": draw(4, 1)}), "convert: 'bn.bias' must have shape (4,), like running_mean; got (4, 1). All arrays of a batch_norm describe the same features."),
    (lambda: convert.read("torch", {"layer1": {"0": {"ln": {"weight": draw(4), "bias": draw(3)}}}}, {"*ln": "layer_norm"}), "convert: 'layer1.0.ln.bias' must have shape (4,), like weight; got (3,). All arrays of a layer_norm describe the same features."),
    (lambda: convert.read("torch", without(bn, "bn.running_var")), "convert: 'bn.running_var' must be there, since 'bn.running_mean' is; got no such entry. Running statistics are whole."),
    (lambda: convert.read("haiku", haiku_without, haiku_told), "convert: 'state/net/~/batch_norm/~/mean_ema/hidden' must be there, since 'state/net/~/batch_norm/~/mean_ema/average' is; got no such entry. Running statistics are whole."),
    (lambda: convert.read("torch", bn | {"bn.bias": "x", "fc.weight": draw(4), "fc.bias": draw(4)}, {"fc": "rms_norm"}), "convert: an rms_norm of torch has no bias; got 'fc.bias'. Is it a layer_norm? If not, leave the bias out."),
    (lambda: convert.read("torch", sn | {"fc.parametrizations.weight.0._u": draw(5)}), "convert: 'fc.parametrizations.weight.0._u' must have shape (4,), like original; got (5,). It belongs to 'fc.parametrizations.weight.original' of shape (4, 3)."),
    (lambda: convert.read("torch", sn | {"fc.parametrizations.weight.0._v": draw(5)}), "convert: 'fc.parametrizations.weight.0._v' must have shape (3,), like original; got (5,). It belongs to 'fc.parametrizations.weight.original' of shape (4, 3)."),
    (lambda: convert.read("torch", wn | {"fc.parametrizations.weight.original0": draw(4)}), "convert: 'fc.parametrizations.weight.original0' must have shape (4, 1), one length for each feature; got (4,). It belongs to 'fc.parametrizations.weight.original1' of shape (4, 3); one length in all has shape ()."),
    (lambda: convert.read("flax", {"params": {"D": {"kernel": draw(3, 4)}, "W": {"D/kernel/scale": draw(3)}}}), "convert: 'params/W/D/kernel/scale' must have shape (4,), like kernel; got (3,). Those are the sizes of feature_axes=-1 of shape (3, 4)."),
    (lambda: convert.read("nnx", {"sn": {"layer_instance": {"k": draw(3, 4)}, "batch_stats": {("k", "u"): draw(4), ("k", "sigma"): draw()}}}), "convert: 'sn/batch_stats/k/u' must have shape (1, 4), like k; got (4,). It has the features of 'sn/layer_instance/k'."),
    (lambda: convert.read("flax", {"params": {"GroupNorm_0": {"scale": draw(48)}}}), "convert: 'GroupNorm_0' must have features that its 32 groups divide; got 48. State the number of groups in `norms`."),
    (lambda: convert.read("flax", {"batch_stats": {"bn": {"mean": draw(4), "var": draw(4), "count": draw(4)}}}), "convert: 'batch_stats/bn/count' is kept with debias=True or momentum=None only; got momentum=0.99, debias=False. Say which: norms={'bn': {'debias': True}}, or {'momentum': None}."),
    (lambda: convert.read("haiku", hk, haiku_told | {"*batch_norm": {"decay_rate": 0.99}}), "convert: 'state/net/~/batch_norm/~/mean_ema/average' must be hidden / (1 - decay_rate^counter); got decay_rate=0.99 for hidden / average = 0.521703 after 7 updates. That is a decay rate of 0.9: state the layer's own for 'net/~/batch_norm'."),
    (lambda: convert.read("torch", {"a.b": draw(2), "a": {"b": draw(2)}}), "convert: every entry must have its own path; got 'a.b' and 'a.b'. Rename one of them."),
    # writing
    (lambda: convert.write("keras", {"a": a_layer("instance_norm", {})}), "convert: keras must have the kind of 'a'; got 'instance_norm'. It has batch_norm, layer_norm, rms_norm, group_norm, spectral_norm: replace the layer's kind, or leave it out."),
    (lambda: convert.write("torch", {"a": convert.Layer("rms_norm", draw(4), draw(4))}), "convert: torch's rms_norm has no bias; got one for 'a'. Add it outside, and drop it with dataclasses.replace."),
    (lambda: convert.write("flax", {"a": dataclasses.replace(bn_layer, kind="instance_norm")}), "convert: flax's instance_norm keeps no statistics; got some for 'a'. For inference make its kind batch_norm."),
    (lambda: convert.write("torch", {"a": convert.Layer("layer_norm", draw(4), draw(3))}), "convert: all arrays of 'a' must have one shape; got scale (4,), bias (3,). They describe the same features."),
    (lambda: convert.write("torch", {"a:b": convert.Layer("spectral_norm", spectral=jn.SpectralState(draw(3), draw()))}), "convert: 'a:b' must have its weight to be torch's spectral_norm; got none. Give it with dataclasses.replace."),
    (lambda: convert.write("torch", {"fc": a_layer("weight_norm", {"axis": (0, 1)})}), "convert: a weight_norm of torch must be named 'module:weight'; got 'fc'. Rename the layer, as the module that normalizes, a colon, and the weight within."),
    (lambda: convert.write("torch", {"a:b": a_layer("weight_norm", {"axis": (1, 2)})}), "convert: 'a:b' must sum over all axes but the last, or over all; got axis=(1, 2) for shape (2, 3, 4). Move the kept axis to the end."),
    (lambda: convert.write("haiku", {"a": bn_layer}), "convert: 'a' must be given the dimensions of x, which haiku keeps; got into=None. Pass `into`, the state of a model as its init makes it."),
    (lambda: convert.write("equinox", {"a": dataclasses.replace(bn_layer, options={"momentum": None})}), "convert: 'a' needs a momentum below 1, by which the sums of this framework forget; got None. Give it one: dataclasses.replace(layer, options={**layer.options, 'momentum': 0.99})."),
    (lambda: convert.write("torch", {"a": dataclasses.replace(bn_layer, stats=bn_layer.stats._replace(count=np.arange(4.0)))}), "convert: 'a' must have been updated equally often in all features; got counts from 0 to 3. Give them one count."),
    (lambda: convert.write("torch", {"b": bn_layer}, into=bn), "convert: `into` must have every entry of the layers; got no 'b.weight'. Rename the layer as the model does."),
    (lambda: convert.write("keras", {"b": bn_layer}, into={"b/gamma": draw(3), "b/beta": draw(4), "b/moving_mean": draw(4), "b/moving_variance": draw(4)}), "convert: 'b/gamma' must have shape (3,), as in `into`; got (4,). It is not the same layer, or not of the same size."),
    (lambda: convert.write("torch", {"bn": dataclasses.replace(bn_layer, scale=None)}, into=bn | {"bn.num_batches_tracked": count(0)}), "convert: 'bn' must have what `into` has; got nothing for 'bn.weight'. It would keep its initial value."),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda row: ROWS[row][1][9:60])
def test_errors_say_the_rule_what_came_and_what_to_do(row):
    call, message = ROWS[row]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == message


def test_entries_that_are_no_numbers_are_type_errors():
    state = bn | {"bn.weight": np.ones(4, np.int8)}
    with pytest.raises(TypeError) as error:
        convert.read("torch", state)
    assert str(error.value) == "convert: 'bn.weight' must be floating; got int8. Dequantize it first."
