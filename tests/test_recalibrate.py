"""`recalibrate` of whole models, Linen and NNX: exact pooled moments of what enters each norm, and nothing else."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn
import jaxnorm.linen as jnl
import jaxnorm.nnx as jnnx

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def as_flax_expects():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def batches(rng):
    """Unequal batches around different means: an average of their statistics is not the statistics of all."""
    return [jnp.asarray(rng.normal(size=(n, 5)) + 3 * i, jnp.float32) for i, n in enumerate((7, 2, 13))]


class LinenNet(nn.Module):
    """Two norms, of which the second sees what the first put out; one is called twice."""

    library: object = jnl

    @nn.compact
    def __call__(self, x, training):
        # Flax's fast variance is off by 5e-4 in these small batches, and with it what the second norm sees.
        norm = functools.partial(self.library.BatchNorm, use_running_average=not training, use_fast_variance=False)
        h = norm(name="first")(x)
        second = norm(name="second", momentum=0.5)
        h = second(nn.Dense(4, name="dense")(h))
        return second(jnp.tanh(h))


class NNXNet(nnx.Module):
    def __init__(self, library, rngs):
        self.first = library.BatchNorm(5, use_fast_variance=False, rngs=rngs)
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.second = library.BatchNorm(4, momentum=0.5, use_fast_variance=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        h = self.second(self.dense(self.first(x)))
        return self.second(self.dropout(jnp.tanh(h)))


def expected(batches, kernel, bias):
    """By hand, in NumPy: each batch is normalized by itself; the moments of all values that enter a norm are pooled."""
    entered = []
    for x in batches:
        x = np.asarray(x, np.float64)
        h = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
        again = np.tanh((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5))
        entered.append(np.concatenate([h, again]))
    pooled = [np.concatenate([np.asarray(b, np.float64) for b in batches]), np.concatenate(entered)]
    return [(p.mean(0), p.var(0)) for p in pooled]


@pytest.mark.parametrize("library", [jnl, nn], ids=["ours", "flax"])
def test_linen(library, batches):
    model = LinenNet(library)
    variables = model.init(KEY, batches[0], True)
    before = jax.tree.map(np.array, variables)
    new = jnl.recalibrate(model, variables, batches, training=True)
    dense = variables["params"]["dense"]
    for name, (mean, var) in zip(("first", "second"), expected(batches, dense["kernel"], dense["bias"]), strict=True):
        assert_allclose(new["batch_stats"][name]["mean"], mean, rtol=1e-5, atol=1e-5)
        assert_allclose(new["batch_stats"][name]["var"], var, rtol=1e-5)
    jax.tree.map(assert_array_equal, variables, before)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    jax.tree.map(assert_array_equal, new["params"], variables["params"])


@pytest.mark.parametrize("library", [jnnx, nnx], ids=["ours", "flax"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nnx(library, mode, batches):
    """Dropout is as the model was set, and its stream of keys is not used up."""
    model = NNXNet(library, nnx.Rngs(0))
    if mode == "eval":
        model.eval()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    new = jnnx.recalibrate(model, batches)
    (mean, var), second = expected(batches, model.dense.kernel[...], model.dense.bias[...])
    assert_allclose(new.first.mean[...], mean, rtol=1e-5)
    assert_allclose(new.first.var[...], var, rtol=1e-5)
    if mode == "eval":
        assert_allclose(new.second.mean[...], second[0], rtol=1e-5, atol=1e-5)
        assert_allclose(new.second.var[...], second[1], rtol=1e-5)
    else:  # dropout widens what it keeps
        assert np.min(new.second.var[...] - second[1]) > 0.05
    after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    jax.tree.map(assert_array_equal, after, before)
    assert new.first.use_running_average == (mode == "eval")
    assert type(new.first) is library.BatchNorm
    assert jax.tree.structure(nnx.state(new)) == jax.tree.structure(nnx.state(model))
    jax.tree.map(assert_array_equal, new.dense.kernel[...], model.dense.kernel[...])


OPTIONS = {"momentum": None, "ddof": 1, "axis": 1}


def test_options_masks_and_tuples(rng):
    """A batch may be several arguments; ddof, count and the feature axis are the norm's; no NaN is read."""
    x = jnp.asarray(rng.normal(size=(6, 3, 4)) + 2, jnp.float32)
    masks = jnp.asarray(rng.random((2, 3, 1, 4)) > 0.4)
    batches = [(jnp.where(m, part, jnp.nan), m) for part, m in zip(jnp.split(x, 2), masks, strict=True)]
    valid = np.concatenate([np.broadcast_to(m, (3, 3, 4)) for m in masks]).swapaxes(1, 2)
    values = np.asarray(x, np.float64).swapaxes(1, 2)[valid[..., 0]]

    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return jnl.BatchNorm(use_running_average=False, name="norm", **OPTIONS)(x, mask=mask)

    class MaskedNNX(nnx.Module):
        def __init__(self):
            self.norm = jnnx.BatchNorm(3, rngs=nnx.Rngs(0), **OPTIONS)

        def __call__(self, x, mask):
            return self.norm(x, mask=mask)

    variables = Masked().init(KEY, *batches[0])
    stats = jnl.recalibrate(Masked(), variables, batches)["batch_stats"]["norm"]
    norm = jnnx.recalibrate(MaskedNNX(), iter(batches)).norm
    for mean, var, count in (
        (stats["mean"], stats["var"], stats["count"]),
        (norm.mean[...], norm.var[...], norm.count[...]),
    ):
        assert_allclose(mean, values.mean(0), rtol=1e-5)
        assert_allclose(var, values.var(0, ddof=1), rtol=1e-5)
        assert_array_equal(count, 2)


def test_what_does_not_train_stays(batches):
    """A frozen norm, and one that the model calls with running averages."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnl.BatchNorm(frozen=True, name="frozen")(x)
            x = jnl.BatchNorm(use_running_average=True, name="inference")(x)
            return jnl.BatchNorm(use_running_average=False, name="trains")(x)

    variables = Net().init(KEY, batches[0])
    new = jnl.recalibrate(Net(), variables, batches)["batch_stats"]
    for name in ("frozen", "inference"):
        jax.tree.map(assert_array_equal, new[name], variables["batch_stats"][name])
    assert np.min(new["trains"]["mean"]) > 1

    frozen = jnnx.BatchNorm(5, frozen=True, rngs=nnx.Rngs(0))
    model = jnnx.recalibrate(nnx.Sequential(frozen, jnnx.BatchNorm(5, rngs=nnx.Rngs(0))), batches)
    assert_array_equal(model.layers[0].mean[...], 0)
    assert np.min(model.layers[1].mean[...]) > 1


def test_a_feature_without_a_value_keeps_its_statistics(batches):
    """Masked in every batch: bit for bit as it was."""
    mask = jnp.array([[True, True, False, True, True]])

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, name="norm")(x, mask=jnp.broadcast_to(mask, x.shape))

    variables = Net().init(KEY, batches[0])
    variables["batch_stats"]["norm"]["mean"] = jnp.full(5, 0.25)
    mean = jnl.recalibrate(Net(), variables, batches)["batch_stats"]["norm"]["mean"]
    assert mean[2] == 0.25
    assert np.min(np.delete(mean, 2)) > 1


def test_one_value_has_no_unbiased_variance():
    """A feature that was seen once keeps its statistics under ddof=1."""
    norm = jnl.BatchNorm(use_running_average=False, ddof=1)
    x, mask = jnp.array([[1.0, 5.0], [3.0, 7.0]]), jnp.array([[True, True], [True, False]])
    variables = {**norm.init(KEY, x), "batch_stats": {"mean": jnp.full(2, 0.25), "var": jnp.full(2, 4.0)}}
    new = jnl.recalibrate(norm, variables, [x], mask=mask)["batch_stats"]
    assert_allclose(new["mean"], [2.0, 0.25])
    assert_allclose(new["var"], [2.0, 4.0])


@pytest.mark.full
def test_scanned_layers_and_devices(batches):
    """Statistics with a leading axis of layers under scan; shared over a named axis under vmap."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + 1 + jnl.BatchNorm(use_running_average=False, name="norm")(x), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            scanned = nn.scan(
                Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
            )
            return scanned(name="layers")(x, None)[0]

    variables = Deep().init(KEY, batches[0])
    mean = jnl.recalibrate(Deep(), variables, batches)["batch_stats"]["layers"]["norm"]["mean"]
    everything = np.concatenate(batches)
    assert_allclose(mean, everything.mean(0) + np.arange(3)[:, None], rtol=1e-5)

    class Mapped(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.vmap(
                jnl.BatchNorm,
                variable_axes={"params": None, "batch_stats": None},
                split_rngs={"params": False},
                axis_name="devices",
            )
            return norm(use_running_average=False, axis_name="devices", name="norm")(x)

    pairs = [b[: len(b) // 2 * 2].reshape(2, -1, 5) for b in batches]
    stats = jnl.recalibrate(Mapped(), Mapped().init(KEY, pairs[0]), pairs)["batch_stats"]["norm"]
    rows = np.concatenate([p.reshape(-1, 5) for p in pairs])
    assert_allclose(stats["var"], rows.var(0), rtol=1e-5)


@pytest.mark.full
def test_scanned_nnx_layers(batches):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs):
        return jnnx.BatchNorm(5, rngs=rngs)

    class Deep(nnx.Module):
        def __init__(self):
            self.norms = create(nnx.Rngs(0))

        def __call__(self, x):
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def through(norm, x):
                return x + 1 + norm(x)

            return through(self.norms, x)

    mean = jnnx.recalibrate(Deep(), batches).norms.mean[...]
    assert_allclose(mean, np.concatenate(batches).mean(0) + np.arange(3)[:, None], rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", ["BatchRenorm", "ConditionalBatchNorm", "MeanOnlyBatchNorm", "EvoNormB0"])
def test_the_family_s_norms_of_a_batch(name, rng):
    x = jnp.asarray(rng.normal(size=(4, 6, 5)) + 2, jnp.float32)
    labels = (jnp.array([0, 1, 0, 1]),) if name == "ConditionalBatchNorm" else ()
    options = {"num_classes": 2} if labels else {}
    parts = [(x[:3], *(label[:3] for label in labels)), (x[3:], *(label[3:] for label in labels))]
    model = getattr(jnl, name)(use_running_average=False, **options)
    stats = jnl.recalibrate(model, model.init(KEY, x, *labels), parts)["batch_stats"]
    norm = jnnx.recalibrate(getattr(jnnx, name)(5, rngs=nnx.Rngs(0), **options), parts)
    for mean, var in ((stats["mean"], stats["var"]), (norm.mean[...], norm.var[...])):
        assert_allclose(mean, x.mean((0, 1)), rtol=1e-5)
        assert_allclose(var, x.var((0, 1)), rtol=1e-5)


@pytest.mark.full
def test_whitening_and_domains_stay(rng):
    """Their statistics are of another kind: untouched, beside norms that are measured."""
    x = jnp.asarray(rng.normal(size=(8, 4)) + 2, jnp.float32)
    model = nn.Sequential([jnl.Whiten(use_running_average=False), jnl.BatchNorm(use_running_average=False)])
    variables = model.init(KEY, x)
    new = jnl.recalibrate(model, variables, [x])["batch_stats"]
    jax.tree.map(assert_array_equal, new["layers_0"], variables["batch_stats"]["layers_0"])
    assert np.abs(new["layers_1"]["mean"] - 0).max() < 1e-4  # whitened: centred
    assert np.all(new["layers_1"]["var"] != 1)


@pytest.mark.full
def test_linen_reuses_no_trace_of_nn_jit(batches):
    """A model under nn.jit that has been called before, and recalibrated before, is traced anew."""
    model = nn.jit(jnl.BatchNorm)(use_running_average=False)
    variables = model.init(KEY, batches[0])
    model.apply(variables, batches[0], mutable="batch_stats")
    for some in (batches[:2], batches):
        new = jnl.recalibrate(model, variables, some)
        assert_allclose(new["batch_stats"]["mean"], np.concatenate(some).mean(0), rtol=1e-5)


def test_batch_renorm_forgets_its_old_statistics_while_it_is_measured(rng):
    """Corrected towards them it would hand on what no later inference does."""
    x = jnp.asarray(rng.normal(size=(256, 5)) * 3 + 10, jnp.float32)
    model = nn.Sequential([jnl.BatchRenorm(use_running_average=False) for _ in range(2)])
    stats = jnl.recalibrate(model, model.init(KEY, x), [x])["batch_stats"]["layers_1"]
    norms = nnx.Sequential(*(jnnx.BatchRenorm(5, rngs=nnx.Rngs(0)) for _ in range(2)))
    second = jnnx.recalibrate(norms, [x]).layers[1]
    for mean, var in ((stats["mean"], stats["var"]), (second.mean[...], second.var[...])):
        assert_allclose(mean, 0, atol=1e-5)
        assert_allclose(var, 1, rtol=1e-3)


class TwiceLinen(jnl.BatchRenorm):
    @nn.compact
    def __call__(self, x, training):
        return super().__call__(2 * x, use_running_average=not training)


class TwiceNNX(jnnx.BatchRenorm):
    def __call__(self, x):
        return super().__call__(2 * x)


@pytest.mark.full
def test_a_subclass_is_measured_where_its_norm_is_called(batches):
    """Once, and with what it hands to the norm."""
    model = TwiceLinen(ddof=1)
    stats = jnl.recalibrate(model, model.init(KEY, batches[0], True), batches, training=True)["batch_stats"]
    norm = jnnx.recalibrate(TwiceNNX(5, ddof=1, rngs=nnx.Rngs(0)), batches)
    assert type(norm) is TwiceNNX
    entered = 2 * np.concatenate(batches)
    for mean, var in ((stats["mean"], stats["var"]), (norm.mean[...], norm.var[...])):
        assert_allclose(mean, entered.mean(0), rtol=1e-5)
        assert_allclose(var, entered.var(0, ddof=1), rtol=1e-5)


@pytest.mark.full
def test_nnx_traces_and_keeps_what_saw_nothing(batches):
    """Under jax.jit; with a mask that hides everything the statistics are as they were, bit for bit."""
    graph, state = nnx.split(jnnx.BatchNorm(5, rngs=nnx.Rngs(0)))

    @jax.jit
    def run(state, batches):
        return jnnx.recalibrate(nnx.merge(graph, state), batches).mean[...]

    assert_allclose(run(state, batches), np.concatenate(batches).mean(0), rtol=1e-5)
    norm = nnx.merge(graph, state)
    norm.mean[...] = jnp.full(5, 0.25)
    kept = jnnx.recalibrate(norm, batches, mask=jnp.zeros((1, 5), bool))
    assert_array_equal(kept.mean[...], 0.25)


@pytest.mark.full
@pytest.mark.parametrize("groups", [None, [[0, 1], [2, 3]]], ids=["all devices", "pairs"])
def test_devices_pool_by_their_groups(groups, rng):
    """Four devices under vmap: each ends with the statistics of its group."""
    x = jnp.asarray(rng.normal(size=(4, 3, 5)) + np.arange(4)[:, None, None], jnp.float32)
    options = {"axis_name": "devices", "axis_index_groups": groups}
    mapped = nn.vmap(
        jnl.BatchNorm, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, axis_name="devices"
    )

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return mapped(use_running_average=False, name="norm", **options)(x)

    linen = jnl.recalibrate(Net(), Net().init(KEY, x), [x])["batch_stats"]["norm"]["mean"]

    class Stack(nnx.Module):
        def __init__(self):
            make = nnx.vmap(lambda rngs: jnnx.BatchNorm(5, rngs=rngs, **options))
            self.norms = make(nnx.Rngs(0).split(4))

        def __call__(self, x):
            return nnx.vmap(lambda norm, x: norm(x), axis_name="devices")(self.norms, x)

    stacked = jnnx.recalibrate(Stack(), [x]).norms.mean[...]
    each = np.asarray(x).mean(1)
    sets = [range(4)] * 4 if groups is None else [g for g in groups for _ in g]
    expected = np.stack([each[list(s)].mean(0) for s in sets])
    assert_allclose(linen, expected, rtol=1e-5, atol=1e-6)
    assert_allclose(stacked, expected, rtol=1e-5, atol=1e-6)


def test_errors(batches):
    model = LinenNet()
    variables = model.init(KEY, batches[0], True)
    with pytest.raises(ValueError, match="recalibrate: `batches` must hold at least one batch"):
        jnl.recalibrate(model, variables, [], training=True)
    with pytest.raises(ValueError, match=r"recalibrate: a norm of a batch.* must be training; got none"):
        jnl.recalibrate(model, variables, batches, training=False)
    with pytest.raises(ValueError, match=r"recalibrate: a norm of a batch.* must be training; got none"):
        jnl.recalibrate(nn.Dense(2), nn.Dense(2).init(KEY, batches[0]), batches)
    with pytest.raises(ValueError, match="recalibrate: `batches` must hold at least one batch"):
        jnnx.recalibrate(NNXNet(jnnx, nnx.Rngs(0)), [])
    with pytest.raises(ValueError, match=r"recalibrate: a norm of a batch.* must be training; got none"):
        jnnx.recalibrate(nnx.Linear(5, 2, rngs=nnx.Rngs(0)), batches)


def test_pooled_statistics_equal_the_pure_function(batches):
    """The first norm's input is the data: `jaxnorm.recalibrate` says the same of it."""
    pooled = jn.recalibrate(lambda x: jn.moments(x, 0), batches)
    model = jnl.BatchNorm(use_running_average=False)
    stats = jnl.recalibrate(model, model.init(KEY, batches[0]), batches)["batch_stats"]
    assert_allclose(stats["mean"], pooled.mean, rtol=1e-6)
    assert_allclose(stats["var"], pooled.var, rtol=1e-6)
