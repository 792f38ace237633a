"""Summaries, histories, and numbers per layer: against NumPy, and what happens when a run goes wrong."""

import os
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm.inspect import (
    EDGES,
    History,
    Summary,
    capture,
    capture_linen,
    drift,
    histogram,
    norms,
    percentiles,
    running_statistics,
    summarize,
    update_ratios,
)

COARSE = np.array([-1.5, -0.25, 0.0, 0.5, 2.0, 100.0], np.float32)
BETWEEN = np.linspace(1000.0, 1000.5, 40, dtype=np.float32)  # many edges that share their leading bits


def counts(x, edges):
    """NumPy's histogram, with what lies beyond the edges in the outermost bins."""
    x = np.asarray(x, np.float32)
    x = x[np.isfinite(x)]
    above = np.sum(x >= edges[-1])  # NumPy closes the last bin: the same, for values are clipped below it here
    inside = np.histogram(np.clip(x[x < edges[-1]], edges[0], None), edges)[0]
    return inside + above * (np.arange(len(edges) - 1) == len(edges) - 2)


def values(rng):
    return np.concatenate([rng.normal(3, 2, 500), rng.normal(0, 1e-3, 200), rng.lognormal(5, 3, 300), np.zeros(24)])


# -- summaries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [EDGES, COARSE, BETWEEN, np.array([-1.0, 1.0])], ids=["default", "5", "39", "1"])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int32])
def test_histograms_are_numpys(rng, edges, dtype):
    x = np.concatenate([np.clip(values(rng), -6e4, 6e4), np.full(3, 1000.25), rng.normal(1000.2, 0.2, 50)])
    x = jnp.asarray(x).astype(dtype)
    found = summarize(x, edges=edges).histogram
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, counts(x.astype(jnp.float32), edges.astype(np.float32)))


def test_a_bin_holds_its_lower_edge_and_the_last_bins_what_is_beyond():
    for edges in (EDGES, COARSE, BETWEEN):
        on = summarize(jnp.asarray(edges), edges=edges).histogram
        np.testing.assert_array_equal(on, np.r_[np.ones(len(edges) - 2), 2])
        lower = np.nextafter(edges, np.float32(-np.inf))
        lower = np.where(edges == 0, -np.finfo(np.float32).tiny, lower)  # XLA takes subnormal numbers for zeros
        below = summarize(lower, edges=edges).histogram
        expected = np.histogram(np.clip(lower, edges[0], None), edges)[0]
        np.testing.assert_array_equal(below, expected)
    np.testing.assert_array_equal(summarize(jnp.array([-1e30, 1e30, -0.0]), edges=COARSE).histogram, [1, 0, 1, 0, 1])


def test_the_default_edges_are_found_by_one_comparison():
    assert histogram._search(EDGES.tobytes()).halvings == 1


@pytest.mark.parametrize("axis", [None, 0, (0, 2), -1, ()])
def test_statistics_are_numpys_over_any_axes(rng, axis):
    x = np.round(rng.normal(3, 2, (7, 5, 4)), 1).astype(np.float32)
    found = jax.jit(lambda x: summarize(x, axis, saturation=(1.0, 5.0)))(x)
    axes = tuple(range(3)) if axis is None else axis
    np.testing.assert_allclose(found.mean, x.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(found.std, x.std(axes), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.dead, (x == 0).mean(axes), rtol=1e-6)
    np.testing.assert_allclose(found.saturated, ((x <= 1) | (x >= 5)).mean(axes), rtol=1e-6)
    np.testing.assert_array_equal(found.nonfinite, np.zeros(found.mean.shape))
    kept = np.moveaxis(x, axes, range(-len(axes), 0)) if isinstance(axes, tuple) else np.moveaxis(x, axes, -1)
    rows = kept.reshape(*found.mean.shape, -1)
    expected = np.apply_along_axis(lambda row: counts(row, EDGES), -1, rows)
    np.testing.assert_array_equal(found.histogram, expected)


def test_bfloat16_is_summarized_in_float32(rng):
    x = jnp.asarray(rng.normal(100, 1, 4096)).astype(jnp.bfloat16)
    found = summarize(x)
    assert {a.dtype for a in found} == {jnp.dtype("float32"), jnp.dtype("int32")}
    np.testing.assert_allclose(found.mean, np.asarray(x, np.float64).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.std, np.asarray(x, np.float64).std(), rtol=1e-4)


def test_nonfinite_values_are_counted_and_nothing_else():
    x = jnp.array([1.0, jnp.nan, 3.0, jnp.inf, -jnp.inf, 0.0, 0.0, 8.0])
    found = summarize(x, saturation=4.0)
    np.testing.assert_allclose([found.mean, found.std], [2.4, np.std([1, 3, 0, 0, 8])], rtol=1e-6)
    np.testing.assert_allclose([found.dead, found.saturated, found.nonfinite], [2 / 8, 1 / 8, 3 / 8])
    assert int(found.histogram.sum()) == 5
    nothing = summarize(jnp.full(3, jnp.nan))
    assert np.isnan(nothing.mean)
    assert np.isnan(nothing.std)
    assert (float(nothing.nonfinite), int(nothing.histogram.sum())) == (1, 0)


@pytest.mark.parametrize("hidden", [np.nan, np.inf, 0.0, 1e30])
def test_what_a_mask_hides_is_not_read(rng, hidden):
    x, where = rng.normal(1, 2, (6, 5, 4)).astype(np.float32), rng.random((6, 1, 4)) < 0.6
    where[:, :, 1] = False
    seen = summarize(np.where(where, x, hidden).astype(np.float32), (0, 1), where=where, saturation=2.0)
    for feature in range(4):
        kept = x[np.broadcast_to(where, x.shape)[..., feature], feature]
        one = summarize(kept, saturation=2.0)
        for a, b in zip(seen, one, strict=True):
            np.testing.assert_allclose(a[feature], b, rtol=1e-6)
    assert np.isnan([seen.mean[1], seen.std[1], seen.dead[1], seen.saturated[1], seen.nonfinite[1]]).all()
    assert not seen.histogram[1].any()


def test_saturation_is_of_the_histogram_unless_limits_are_given():
    x = jnp.array([-2.0, -1.5, 0.2, 99.0, 100.0, 0.01, 0.5, 0.99])
    assert float(summarize(x, edges=COARSE).saturated) == 3 / 8
    assert float(summarize(x, saturation=1.5).saturated) == 4 / 8
    assert float(summarize(x, saturation=(0.02, 0.98)).saturated) == 6 / 8
    assert float(jax.jit(lambda x, s: summarize(x, saturation=s).saturated)(x, 1.5)) == 4 / 8


def test_a_dead_unit_is_one_that_is_zero_for_every_sample():
    x = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, -0.0], [0.0, 2.0, 0.0]])
    np.testing.assert_allclose(jnp.mean(summarize(x, 0).dead == 1), 2 / 3, rtol=1e-6)


def test_summaries_pass_through_transforms(rng):
    x = rng.normal(2, 3, (3, 4, 5)).astype(np.float32)
    each = [summarize(part) for part in x]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *each)
    for way in (jax.vmap(summarize), lambda x: jax.lax.scan(lambda c, part: (c, summarize(part)), None, x)[1]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(way)(x), stacked)
    assert jax.tree.map(jnp.shape, summarize(np.zeros((0, 4)), 0)).histogram == (4, 256)


# -- percentiles ------------------------------------------------------------------------------------------------------

Q = np.array([0, 1, 15, 35, 50, 85, 99.9, 100])


@pytest.mark.parametrize("scale", [1e-3, 1, 1000])
@pytest.mark.parametrize("size", [1, 2, 1000, 4001])
def test_percentiles_lie_in_the_bin_of_the_true_value(rng, scale, size):
    x = (scale * rng.normal(0.5, 1, size)).astype(np.float32)
    found = percentiles(summarize(x), Q)
    true = np.percentile(x, Q, method="inverted_cdf")
    bins = np.searchsorted(EDGES, true, side="right") - 1
    assert (found >= EDGES[bins]).all()
    assert (found <= EDGES[bins + 1]).all()
    assert (np.abs(found - true) <= (np.exp(0.11) - 1) * np.hypot(true, 0.02) * (1 + 1e-5)).all()


def test_percentiles_of_dense_values_are_close_to_numpys_default(rng):
    x = rng.normal(1, 2, 20000).astype(np.float32)
    np.testing.assert_allclose(percentiles(summarize(x), [15, 50, 85]), np.percentile(x, [15, 50, 85]), atol=0.02)


def test_percentiles_interpolate_within_bins_and_skip_empty_ones():
    histogram = np.array([[0, 4, 0, 0, 4], [8, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = percentiles(histogram, [0, 25, 50, 75, 100], np.arange(6.0))
    np.testing.assert_allclose(found[:, 0], [1, 1.5, 2, 4.5, 5])
    np.testing.assert_allclose(found[:, 1], [0, 0.25, 0.5, 0.75, 1])
    assert np.isnan(found[:, 2]).all()
    assert percentiles(histogram, 50, np.arange(6.0)).shape == (3,)
    np.testing.assert_array_equal(jax.jit(lambda h: percentiles(h, 50.0, np.arange(6.0)))(histogram), found[2])


def test_percentiles_at_the_boundary_of_bins_do_not_fall_into_the_next():
    for n in (100, 1000, 100_000):
        below = n // 100 * np.arange(1, 100)
        found = percentiles(np.stack([below, 0 * below, n - below], -1), np.arange(1, 100), [0.0, 1.0, 500.0, 999.0])
        np.testing.assert_array_equal(np.diagonal(found), 1)


# -- histories --------------------------------------------------------------------------------------------------------


def look(x) -> dict[str, Summary]:
    return {"b": summarize(jnp.asarray(x, jnp.float32)), "a": summarize(jnp.ones((3, 2)) * x, 0)}


def fill(steps=150, late=100) -> History:
    history = History()
    for step in range(steps):
        more = {"late": summarize(jnp.arange(3.0))} if step >= late else {}
        history.record(2 * step, look(float(step)) | more, {"loss": 1 / (step + 1)}, **({"norm": 2.0} if late else {}))
    return history


def test_a_history_gives_back_what_was_recorded_with_steps_in_front():
    history = fill()
    np.testing.assert_array_equal(history.steps, 2 * np.arange(150))
    assert history.names == tuple(history) == ("b", "a", "late")
    assert (history["a"].mean.shape, history["a"].histogram.shape) == ((150, 2), (150, 2, 256))
    for step in (0, 63, 64, 149):
        for name, summary in look(float(step)).items():
            jax.tree.map(np.testing.assert_array_equal, Summary(*(a[step] for a in history[name])), summary)
    assert all(isinstance(a, np.ndarray) for a in history["b"])
    np.testing.assert_array_equal(history.scalars["loss"], 1 / np.arange(1, 151))
    assert list(history.scalars) == ["loss", "norm"]


def test_names_that_start_late_are_nan_before():
    history = fill()
    late = history["late"]
    assert np.isnan(late.mean[:100]).all()
    assert np.isnan(percentiles(late, 50)[:100]).all()
    assert not late.histogram[:100].any()
    np.testing.assert_array_equal(late.mean[100:], 1)
    history.record(300, scalars={"accuracy": jnp.array(0.5)})
    assert np.isnan(history.scalars["accuracy"][:-1]).all()
    assert history.scalars["accuracy"][-1] == 0.5
    assert np.isnan(history["a"].mean[-1]).all()
    assert history["a"].histogram.dtype == np.int32


def test_one_step_may_be_recorded_in_parts_and_trees_are_named_by_path():
    history = History()
    history.record(3, {"layer": {"output": summarize(jnp.ones(2)), "input": (summarize(jnp.zeros(2)),)}}, loss=1)
    assert history["layer/output"].mean.tolist() == [1]
    history.record(3, look(2.0), accuracy=0.5)
    assert history.names == ("layer/input/0", "layer/output", "b", "a")
    assert {name: values.tolist() for name, values in history.scalars.items()} == {"loss": [1], "accuracy": [0.5]}
    assert history.steps.tolist() == [3]


def test_saved_and_loaded_it_is_the_same_and_goes_on(tmp_path):
    path = tmp_path / "new folder" / "run"  # no suffix is added
    history = fill()
    history.save(path)
    again = History.load(path)
    assert again.names == history.names
    np.testing.assert_array_equal(again.steps, history.steps)
    np.testing.assert_array_equal(again.edges, history.edges)
    for name in history:
        for a, b in zip(again[name], history[name], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    for name, scalars in history.scalars.items():
        np.testing.assert_array_equal(again.scalars[name], scalars)
    for one in (history, again):
        one.record(1000, look(7.0))
    np.testing.assert_array_equal(again["b"].mean, history["b"].mean)
    assert [p.name for p in path.parent.iterdir()] == ["run"]


def test_an_empty_history_is_saved_and_loaded(tmp_path):
    History(COARSE).save(tmp_path / "h.npz")
    history = History.load(tmp_path / "h.npz")
    assert (history.names, history.steps.size, len(history)) == ((), 0, 0)
    np.testing.assert_array_equal(history.edges, COARSE)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, interruption):
    path, history = tmp_path / "h.npz", fill(10)
    history.save(path)
    before = path.read_bytes()
    history.record(999, look(1.0))

    def half(file, **arrays):
        file.write(b"half of it")
        raise interruption

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(interruption):
        history.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["h.npz"]
    assert history.steps[-1] == 999


def test_older_records_leave_the_device_and_younger_ones_stay():
    history = fill(150)
    on_device = [isinstance(summaries["b"].mean, jax.Array) for summaries, _ in history._rows]
    assert on_device == sorted(on_device)
    assert 32 <= sum(on_device) <= 64


def test_recording_does_not_wait_for_the_device():
    @jax.jit
    def slow(x):
        return summarize(jax.lax.fori_loop(0, 60, lambda _, x: x @ x / 512, x))

    x = jnp.ones((512, 512))
    jax.block_until_ready(slow(x))
    history = History()
    summary = slow(x)
    history.record(0, {"slow": summary}, loss=summary.mean)
    assert not summary.mean.is_ready(), "record returned after the device was done"
    assert np.isfinite(history["slow"].mean).all()


def test_recording_every_50_steps_costs_less_than_5_percent_of_training():
    """Stated so that it holds on a busy machine: processor time, not wall time; the least of 5 interleaved rounds each.

    The extra of a recorded step (all layers' outputs captured and summarized, and recorded) over 50 plain steps.
    """
    layers = [part for _ in range(2) for part in (nn.Dense(400), nn.BatchNorm(use_running_average=False), nn.relu)]
    model, x = nn.Sequential(layers), jnp.linspace(-1, 1, 256 * 400).reshape(256, 400)
    variables = model.init(jax.random.key(0), x)

    def step(variables, watch: bool):
        def loss(params):
            inputs = variables | {"params": params}
            if watch:
                (y, _), captured = capture_linen(model, inputs, x, mutable="batch_stats")
                return jnp.mean(y**2), {name: summarize(layer.output) for name, layer in captured.items()}
            y, _ = model.apply(inputs, x, mutable="batch_stats")
            return jnp.mean(y**2), {}

        gradients, seen = jax.grad(loss, has_aux=True)(variables["params"])
        return jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradients), seen

    jitted = jax.jit(step, static_argnames="watch")
    history, count = History(), iter(range(10**6))

    def seconds(watch: bool) -> float:
        start = time.process_time()
        for _ in range(3):
            _, seen = jax.block_until_ready(jitted(variables, watch))
            history.record(next(count), seen)
        return (time.process_time() - start) / 3

    seconds(False), seconds(True)
    rounds = [(seconds(False), seconds(True)) for _ in range(5)]
    plain, watched = (min(times) for times in zip(*rounds, strict=True))
    assert (watched - plain) / (50 * plain) < 0.05, (plain, watched)


# -- numbers per layer ------------------------------------------------------------------------------------------------


def test_drift_is_in_running_standard_deviations_and_as_a_ratio(rng):
    stats = jn.RunningStats(jnp.array([1.0, -2.0, 0.0]), jnp.array([4.0, 0.25, 0.0]), jnp.ones(3))
    x = rng.normal([2, -2, 5], [3, 0.5, 0], (50, 3)).astype(np.float32)
    found = drift(stats, jn.moments(x, 0), epsilon=1e-3)
    deviation = np.sqrt(np.array([4, 0.25, 0]) + 1e-3)
    np.testing.assert_allclose(found.mean, (x.mean(0) - np.array([1, -2, 0])) / deviation, rtol=1e-5)
    np.testing.assert_allclose(found.var, (x.var(0) + 1e-3) / (np.array([4, 0.25, 0]) + 1e-3), rtol=1e-4)
    assert np.isnan(drift(stats, jn.moments(x, 0, where=jnp.zeros((50, 1), bool))).mean).all()


class Tower(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])


def test_running_statistics_of_linen_nnx_and_plain_trees(rng):
    x = rng.normal(3, 2, (16, 3)).astype(np.float32)
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=False)])
    variables = model.init(jax.random.key(0), x)
    _, variables = model.apply(variables, x, mutable=["batch_stats", "params"])
    found = running_statistics(variables["batch_stats"])
    assert list(found) == ["layers_1"]
    np.testing.assert_array_equal(found["layers_1"].mean, variables["batch_stats"]["layers_1"]["mean"])
    np.testing.assert_array_equal(found["layers_1"].count, np.zeros(4))

    tower = Tower(nnx.Rngs(0))
    tower.blocks[1](tower.blocks[0](x))
    for tree in (nnx.state(tower, nnx.BatchStat), nnx.state(tower)):
        found = running_statistics(tree)
        assert list(found) == ["blocks/1"]
        np.testing.assert_array_equal(found["blocks/1"].var, tower.blocks[1].var[...])

    stats = jn.RunningStats.init(2).update(jn.moments(x[:, :2], 0))
    assert running_statistics({"mine": [stats]})["mine/0"].count.tolist() == [1, 1]


def test_norms_are_per_layer_in_every_kind_of_tree(rng):
    kernel, bias = rng.normal(1, 2, (3, 4)).astype(np.float32), rng.normal(1, 2, 4).astype(np.float32)
    one = np.sqrt((kernel**2).sum() + (bias**2).sum())
    tower = Tower(nnx.Rngs(0))
    tower.blocks[0].kernel[...], tower.blocks[0].bias[...] = kernel, bias
    trees = {
        "a/Dense_0": {"a": {"Dense_0": {"kernel": kernel, "bias": bias}}},
        "0": [{"w": kernel, "b": bias, "step": np.int32(7)}],
        "blocks/0": nnx.state(tower, nnx.Param),
        "z": {"z": 1j * kernel, "bias": bias},
    }
    for name, tree in trees.items():
        expected = np.sqrt((kernel**2).sum()) if name == "z" else one
        np.testing.assert_allclose(jax.jit(norms)(tree)[name], expected, rtol=1e-6)
    half = norms({"a": {"w": jnp.full((300, 300), 300, jnp.float16)}})["a"]  # squares beyond float16
    np.testing.assert_allclose(half, 90000, rtol=1e-6)
    assert half.dtype == jnp.float32


def test_update_ratios(rng):
    params = {"dense": {"kernel": rng.normal(1, 1, (3, 4)), "bias": np.zeros(4)}, "zero": {"bias": np.zeros(2)}}
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    updates = jax.tree.map(lambda a: (0.01 * a + 0.002).astype(np.float32), params)
    found = jax.jit(update_ratios)(params, updates)
    size = lambda tree: np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in tree.values()))
    np.testing.assert_allclose(found["dense"], size(updates["dense"]) / size(params["dense"]), rtol=1e-6)
    assert found["zero"] == 0


# -- errors -----------------------------------------------------------------------------------------------------------

recorded = fill(3)
one = recorded["a"]
stats = jn.RunningStats.init(4)
product = jax.jit(lambda x: capture(jnp.dot, x, x)[1])  # out of jit the names are known as well

ERRORS = [
    (lambda: summarize(jnp.ones(3, jnp.complex64)), TypeError, "summarize: `x` must be real; got dtype complex64. Summarize its real part, or its magnitude."),
    (lambda: summarize(jnp.ones(3), 1), ValueError, "summarize: `axis` must lie within the dimensions of x; got axis=1, x.shape=(3,). Valid: -1 to 0."),
    (lambda: summarize(jnp.ones(3), where=jnp.ones(3)), TypeError, "summarize: `where` must be boolean; got dtype float32. True means count this; write where=mask != 0 for a mask of numbers."),
    (lambda: summarize(jnp.ones(3), edges=[0, 2, 1]), ValueError, "summarize: `edges` must be at least two finite numbers that increase, as float32 too; got [0 2 1]. np.linspace(low, high, bins + 1) is one way."),
    (lambda: summarize(jnp.ones(3), edges=[1.0, 1.0 + 1e-12]), ValueError, "summarize: `edges` must be at least two finite numbers that increase, as float32 too; got [1. 1.]. np.linspace(low, high, bins + 1) is one way."),
    (lambda: jax.jit(lambda e: summarize(jnp.ones(3), edges=e))(jnp.arange(3.0)), TypeError, "summarize: `edges` must be known before; got a traced value. Make them outside of jit."),
    (lambda: summarize(jnp.ones(3), saturation=-1.0), ValueError, "summarize: `saturation` must not be negative; got saturation=-1.0. One number stands for -it and it, two for (low, high)."),
    (lambda: summarize(jnp.ones(3), saturation=(2.0, 1.0)), ValueError, "summarize: `saturation` must not have its low limit above the high one; got (2.0, 1.0). One number stands for -it and it, two for (low, high)."),
    (lambda: summarize(jnp.ones(3), saturation=(1.0, 2.0, 3.0)), ValueError, "summarize: `saturation` must be one number or two; got (1.0, 2.0, 3.0). One number stands for -it and it, two for (low, high)."),
    (lambda: percentiles(one, 50, COARSE), ValueError, "percentiles: `edges` must be one more than the histogram's bins; got 6 edges, histogram of shape (3, 2, 256). Pass the edges that it was made with."),
    (lambda: percentiles(one, [50, 101]), ValueError, "percentiles: `q` must be from 0 to 100; got q=[50, 101]. The median is 50."),
    (lambda: recorded["c"], KeyError, "History: no layer of that name; got 'c'. Known: b, a."),
    (lambda: History()["c"], KeyError, "History: no layer of that name; got 'c'. Nothing recorded yet."),
    (lambda: product(jnp.ones(2))["typo"], KeyError, "Captured: no layer of that name; got 'typo'. Known: dot_general_0."),
    (lambda: capture(jnp.copy, 1.0)[1]["typo"], KeyError, "Captured: no layer of that name; got 'typo'. Nothing was captured."),
    (lambda: recorded.record(1), ValueError, "History.record: steps must not decrease; got step=1 after 4. Start a new History for a new run."),
    (lambda: recorded.record(5.7), TypeError, "History.record: `step` must be a whole number; got step=5.7. Count steps; a time is a scalar."),
    (lambda: recorded.record(4, look(1.0), loss=2.0), ValueError, "History.record: a name is recorded once at a step; got a, b, loss twice at step 4. Use other names."),
    (lambda: recorded.record(5, {"a": summarize(1.0)}), ValueError, "History.record: a name must keep its shapes; got mean of shape () for 'a', before (2,). Summarize the same axes each time."),
    (lambda: recorded.record(5, {"c": summarize(1.0, edges=COARSE)}), ValueError, "History.record: histograms must have the bins of the history's edges, 256; got 5 for 'c'. Give History the edges that summarize is given."),
    (lambda: recorded.record(5, {"c": {"d": jnp.ones(3)}}), TypeError, "History.record: `summaries` must hold Summaries; got ArrayImpl for 'c/d'. Use summarize(x); single numbers are scalars."),
    (lambda: recorded.record(5, {"c/d": summarize(1.0), "c": {"d": summarize(1.0)}}), ValueError, "History.record: every Summary needs a name of its own; got 'c/d' twice. Rename one."),
    (lambda: recorded.record(5, loss=jnp.ones(3)), ValueError, "History.record: `loss` must be one number; got an array of shape (3,). Scalars are single numbers; use summarize for arrays."),
    (lambda: recorded.record(5, loss="low"), TypeError, "History.record: `loss` must be a real number; got loss='low'. Scalars are single numbers; use summarize for arrays."),
    (lambda: jax.jit(lambda x: recorded.record(5, loss=x))(1.0), TypeError, "History.record: it takes computed arrays; got traced values. Return the summaries from the jitted function and record them outside."),
    (lambda: drift(stats, jn.moments(jnp.ones((2, 3)), 0)), ValueError, "drift: both must describe the same features; got stats of shape (4,), moments of shape (3,). Take moments over every axis but the features'."),
    (lambda: running_statistics({"a": {"kernel": np.ones(2)}}), ValueError, "running_statistics: the tree must hold arrays called mean and var side by side; got layers a. Linen keeps them in variables['batch_stats'], NNX in BatchStat variables."),
    (lambda: update_ratios({"a": np.ones(2)}, {"b": np.ones(2)}), ValueError, "update_ratios: `params` and `updates` must have the same layers; got a, b in only one of them. Pass both as the optimizer sees them."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message[:60] for _, _, message in ERRORS])
def test_errors_say_the_rule_what_came_and_what_to_do(call, kind, message):
    before = recorded.steps.tolist()
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.args[0] == message
    assert recorded.steps.tolist() == before, "nothing of a rejected record may stay"


@pytest.mark.parametrize("content", [b"", b"no archive", "a saved array"])
def test_loading_something_else_says_so(tmp_path, content):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.ones(2)) if isinstance(content, str) else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^History.load: the file must be one that History.save wrote; got '.*x.npz'"):
        History.load(path)
    with pytest.raises(FileNotFoundError):
        History.load(tmp_path / "nothing.npz")


def test_a_damaged_file_says_so(tmp_path):
    """Of every tenth byte that is spoiled: the same history, or one clear error."""
    path, history = tmp_path / "x.npz", fill(3)
    history.save(path)
    whole, refused, clear = path.read_bytes(), 0, False
    for place in range(0, len(whole), 10):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            found = History.load(path).names
        except ValueError as error:
            found, refused = None, refused + 1
            clear = str(error).startswith("History.load: the file must be one that History.save wrote; got ")
        assert found == history.names or clear
    assert refused > 10
