"""Bad arguments: one error each, before any arithmetic, that says the rule, what came, and what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
stats = jn.RunningStats.init(4)
train = functools.partial(jn.batch_norm, x, stats, training=True)
m = jn.moments(x, (0, 1))

ROWS = [
    # which numbers
    (lambda: jn.layer_norm(x, axis=3), ValueError, "layer_norm: `axis` must lie within the dimensions of x; got axis=3, x.shape=(2, 3, 4). Valid: -3 to 2."),
    (lambda: jn.rms_norm(np.float32(1)), ValueError, "rms_norm: `axis` must lie within the dimensions of x; got axis=-1, x.shape=(). A scalar has no axes; pass axis=None."),
    (lambda: jn.moments(x, (1, -2)), ValueError, "moments: `axis` must not name an axis twice; got axis=(1, -2), x.shape=(2, 3, 4). Name each axis once."),
    (lambda: jn.layer_norm(x, axis=1.0), TypeError, "layer_norm: `axis` must be an int or a tuple of ints; got 1.0. Name axes by number."),
    (lambda: train(feature_axis=(0, 5)), ValueError, "batch_norm: `feature_axis` must lie within the dimensions of x; got feature_axis=(0, 5), x.shape=(2, 3, 4). Valid: -3 to 2."),
    (lambda: jn.instance_norm(x, axis=(1, 2)), ValueError, "instance_norm: `axis` must not name a feature axis; got axis=(1, 2), feature_axis=(2,), x.shape=(2, 3, 4). Name the space only; groups already reduce features."),
    (lambda: jn.group_norm(x), ValueError, "group_norm: give exactly one of `num_groups` and `group_size`; got num_groups=None, group_size=None. Leave one of them out."),
    (lambda: jn.group_norm(x, num_groups=2, group_size=2), ValueError, "group_norm: give exactly one of `num_groups` and `group_size`; got num_groups=2, group_size=2. Leave one of them out."),
    (lambda: jn.group_norm(np.zeros((8, 14, 14, 48)), num_groups=32), ValueError, "group_norm: `num_groups` must divide the features; got num_groups=32, features=48 (x.shape=(8, 14, 14, 48), feature_axis=-1). Divisors near 32: 24, 48."),
    (lambda: jn.group_norm(x, group_size=3), ValueError, "group_norm: `group_size` must divide the features; got group_size=3, features=4 (x.shape=(2, 3, 4), feature_axis=-1). Divisors near 3: 2, 4."),
    (lambda: jn.group_norm(x, num_groups=2.0), TypeError, "group_norm: `num_groups` must be a Python int; got num_groups=2.0. It decides shapes, so it cannot be traced."),
    (lambda: jn.group_norm(x, num_groups=0), ValueError, "group_norm: `num_groups` must be at least 1; got num_groups=0. Pass a positive int."),
    # one value
    (lambda: jn.batch_norm(x[:1, :1], None, training=True), ValueError, "batch_norm: every set of numbers that shares statistics needs at least two; got one value per set from x.shape=(1, 1, 4), reduced axes (0, 1). One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running statistics."),
    (lambda: jn.batch_norm(x[0], None, training=True, ghost_size=1), ValueError, "batch_norm: every set of numbers that shares statistics needs at least two; got one value per set from x.shape=(3, 4), reduced axes (0,). One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running statistics."),
    (lambda: jn.batch_norm(x[0, 0], None, training=True), ValueError, "batch_norm: every set of numbers that shares statistics needs at least two; got one value per set from x.shape=(4,), reduced axes (). One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running statistics."),
    (lambda: jn.instance_norm(x[:, 0]), ValueError, "instance_norm: every set of numbers that shares statistics needs at least two; got one value per set from x.shape=(2, 4), reduced axes (). One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running statistics."),
    (lambda: jn.group_norm(x[:, 0], group_size=1), ValueError, "group_norm: every set of numbers that shares statistics needs at least two; got one value per set from x.shape=(2, 4), reduced axes (). One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running statistics."),
    (lambda: jax.vmap(lambda x: jn.batch_norm(x, None, training=True, axis_name="d"), axis_name="d")(x[:1, :1]), ValueError, "batch_norm: every set of numbers that shares statistics needs at least two; got one value per set from x.shape=(1, 4), reduced axes (0,). One value has no variance: use a larger batch, layer_norm or rms_norm, or inference with running statistics."),
    # masks and parameters
    (lambda: jn.layer_norm(x, where=np.ones((2, 3))), TypeError, "layer_norm: `where` must be boolean; got dtype float32. True means count this; write where=mask != 0 for a mask of numbers."),
    (lambda: train(where=np.ones((2, 3), bool)), ValueError, "batch_norm: `where` must broadcast to x; got where.shape=(2, 3), x.shape=(2, 3, 4). Add axes of size 1, for example where[..., None], until shapes match from the right."),
    (lambda: jn.moments(x, 0, where=np.ones((5, 2, 3, 4), bool)), ValueError, "moments: `where` must broadcast to x; got where.shape=(5, 2, 3, 4), x.shape=(2, 3, 4). Add axes of size 1, for example where[..., None], until shapes match from the right."),
    (lambda: jn.layer_norm(x, np.ones(3)), ValueError, "layer_norm: `scale` must have the shape of the reduced axes, (4,), or as many dimensions as x and broadcast to it; got scale.shape=(3,), x.shape=(2, 3, 4), reduced axes=(2,). Reshape it, or check the axes."),
    (lambda: jn.layer_norm(x, axis=(1, 2), bias=np.ones(4)), ValueError, "layer_norm: `bias` must have the shape of the reduced axes, (3, 4), or as many dimensions as x and broadcast to it; got bias.shape=(4,), x.shape=(2, 3, 4), reduced axes=(1, 2). Reshape it, or check the axes."),
    (lambda: train(np.ones((3, 4))), ValueError, "batch_norm: `scale` must have the shape of the feature axes, (4,), or as many dimensions as x and broadcast to it; got scale.shape=(3, 4), x.shape=(2, 3, 4), feature axes=(2,). Reshape it, or check the axes."),
    (lambda: jn.normalize(x, np.ones(2), np.ones(4), axis=(0, 1), epsilon=0.0), ValueError, "normalize: `mean` must have the shape of the kept axes, (4,), or as many dimensions as x and broadcast to it; got mean.shape=(2,), x.shape=(2, 3, 4), kept axes=(2,). Reshape it, or check the axes."),
    (lambda: jn.modulate(x, np.ones((3, 4)), None), ValueError, "modulate: `scale` must have the shape of the last axis, (4,), or as many dimensions as x and broadcast to it; got scale.shape=(3, 4), x.shape=(2, 3, 4), last axis=(2,). Reshape it, or check the axes."),
    (lambda: jn.layer_norm(x, np.ones(4, np.complex64)), TypeError, "layer_norm: `scale` must be real where x is; got scale of complex64, x of float32. Make both complex, or take its real part."),
    # state
    (lambda: jn.batch_norm(x, jn.RunningStats.init(3), training=True), ValueError, "batch_norm: `stats` must have the shape of the feature axes; got stats.mean.shape=(3,), x.shape=(2, 3, 4), features (4,). Use RunningStats.init((4,))."),
    (lambda: jn.batch_norm(x, stats._replace(count=jnp.zeros(())), training=True), ValueError, "batch_norm: `stats` must have the shape of the feature axes; got stats.count.shape=(), x.shape=(2, 3, 4), features (4,). Use RunningStats.init((4,))."),
    (lambda: jn.batch_norm(x, tuple(stats), training=True), TypeError, "batch_norm: `stats` must be a RunningStats; got tuple. Start from RunningStats.init(features)."),
    (lambda: jn.batch_norm(x, None, training=False), ValueError, "batch_norm: inference needs running statistics; got stats=None. Pass the state that training returned."),
    (lambda: jn.batch_norm(x, stats._replace(mean=stats.mean.astype(jnp.bfloat16)), training=True), TypeError, "batch_norm: `stats` must be floating and at least float32; got stats.mean of bfloat16. Keep statistics wide; x may be half precision."),
    (lambda: jn.batch_norm(x + 0j, stats, training=True), TypeError, "batch_norm: complex x needs a complex state, and real x a real one; got stats.mean of float32, x of complex64. Use RunningStats.init(features, dtype=...)."),
    (lambda: jn.batch_norm(x, jn.RunningStats.init(4, jnp.complex64), training=False), TypeError, "batch_norm: complex x needs a complex state, and real x a real one; got stats.mean of complex64, x of float32. Use RunningStats.init(features, dtype=...)."),
    (lambda: jn.RunningStats.init(4, jnp.bfloat16), TypeError, "RunningStats.init: `dtype` must be floating and at least float32; got bfloat16. Statistics stay wide while x may be half precision."),
    (lambda: jn.RunningStats.init(4, jnp.int32), TypeError, "RunningStats.init: `dtype` must be floating and at least float32; got int32. Statistics stay wide while x may be half precision."),
    (lambda: stats.update(jn.moments(x, 0)), ValueError, "RunningStats.update: the batch must have the state's features; got moments of shape (3, 4), state of shape (4,). Take moments over every axis but the features'."),
    (lambda: stats.update(m, momentum=1.1), ValueError, "RunningStats.update: `momentum` must be from 0 to 1; got momentum=1.1. It is the weight of the past; torch's momentum is 1 minus it."),
    (lambda: train(momentum=-0.1), ValueError, "batch_norm: `momentum` must be from 0 to 1; got momentum=-0.1. It is the weight of the past; torch's momentum is 1 minus it."),
    (lambda: train(ddof=0.5), TypeError, "batch_norm: `ddof` must be a Python int; got ddof=0.5. 0 is Flax's, 1 torch's."),
    (lambda: stats.update(m, ddof=-1), ValueError, "RunningStats.update: `ddof` must not be negative; got ddof=-1. 0 is Flax's, 1 torch's."),
    (lambda: stats.update(m, momentum=None, debias=True), ValueError, "RunningStats.update: `debias` needs a momentum below 1; got momentum=None. The cumulative average (momentum=None) has no bias to remove."),
    (lambda: stats.update(m, momentum=1.0, debias=True), ValueError, "RunningStats.update: `debias` needs a momentum below 1; got momentum=1.0. The cumulative average (momentum=None) has no bias to remove."),
    (lambda: jn.blend(stats, jn.moments(x, 0), prior_count=1), ValueError, "blend: both must describe the same features; got stats of shape (4,), moments of shape (3, 4). Take moments over every axis but the features'."),
    (lambda: jn.blend(stats, m, prior_count=-1), ValueError, "blend: `prior_count` must not be negative; got prior_count=-1. It is a number of values."),
    (lambda: jn.merge(m, jn.moments(x, 0)), ValueError, "merge: both parts must describe the same sets; got mean.shape=(4,) and (3, 4). Take moments over axes that keep the same shape."),
    (lambda: jn.recalibrate(lambda batch: m, []), ValueError, "recalibrate: `batches` must hold at least one batch; got none. An iterator may be used up."),
    (lambda: jn.batch_norm(x, stats._replace(var=stats.var.astype(jnp.bfloat16)), training=True), TypeError, "batch_norm: `stats` must be floating and at least float32; got stats.var of bfloat16. Keep statistics wide; x may be half precision."),
    (lambda: jn.batch_norm(x, stats._replace(count=jnp.zeros(4, int)), training=True), TypeError, "batch_norm: `stats` must be floating and at least float32; got stats.count of int32. Keep statistics wide; x may be half precision."),
    (lambda: stats.update(jn.moments(x + 1j, (0, 1))), TypeError, "RunningStats.update: complex moments need a complex state; got moments of complex64, state of float32. Use RunningStats.init(features, dtype=...)."),
    (lambda: jn.normalize(x + 1j, np.ones(4), np.ones(4) + 1j, axis=(0, 1), epsilon=0.0), TypeError, "normalize: `var` must be real; got var of complex64. A variance is the mean of |x - mean|^2."),
    (lambda: jn.layer_norm(x, epsilon=1e-3 + 2j), TypeError, "layer_norm: `epsilon` must be a real number; got epsilon=(0.001+2j). It is added to the variance inside the root."),
    (lambda: jn.layer_norm(x, epsilon=None), TypeError, "layer_norm: `epsilon` must be a real number; got epsilon=None. It is added to the variance inside the root."),
    (lambda: jn.layer_norm(x, epsilon=np.ones((5, 1, 1))), ValueError, "layer_norm: `epsilon` must be one number; got an array of shape (5, 1, 1). It is added to the variance inside the root."),
    (lambda: jn.layer_norm(x, epsilon=jnp.float32(-1)), ValueError, "layer_norm: `epsilon` must not be negative; got epsilon=-1.0. It is added to the variance inside the root."),
    (lambda: jn.group_norm(x, num_groups=2, scale_offset=np.ones(2)), ValueError, "group_norm: `scale_offset` must be one number; got an array of shape (2,). It is the same for every entry of scale."),
    (lambda: jn.group_norm(x, num_groups=2, feature_axis=()), ValueError, "group_norm: `feature_axis` must name an axis; got feature_axis=(). Groups are groups of features."),
    (lambda: train(momentum="0.9"), TypeError, "batch_norm: `momentum` must be a real number; got momentum='0.9'. It is the weight of the past; torch's momentum is 1 minus it."),
    (lambda: train(momentum=np.array([0.9, 0.5])), ValueError, "batch_norm: `momentum` must be one number; got an array of shape (2,). It is the weight of the past; torch's momentum is 1 minus it."),
    (lambda: train(debias=1), TypeError, "batch_norm: `debias` must be a Python bool; got 1. It cannot be traced."),
    (lambda: train(ghost_size=2, axis_index_groups=[[0]]), ValueError, "batch_norm: `axis_index_groups` needs an `axis_name`; got axis_index_groups=[[0]]. Name the axis whose devices they group."),
    (lambda: jn.batch_norm(x, stats, training=False, ghost_size=2.5), TypeError, "batch_norm: `ghost_size` must be a Python int; got ghost_size=2.5. It decides shapes, so it cannot be traced."),
    (lambda: jn.RunningStats.from_moments(m, ddof=0.5), TypeError, "RunningStats.from_moments: `ddof` must be a Python int; got ddof=0.5. 0 is Flax's, 1 torch's."),
    (lambda: jn.blend(stats, m, prior_count=np.float32(-2)), ValueError, "blend: `prior_count` must not be negative; got prior_count=-2.0. It is a number of values."),
    (lambda: jn.recalibrate(lambda batch: batch, [x]), TypeError, "recalibrate: `moments_fn` must return Moments, or a tree of them; got a leaf of type ndarray. Return moments(x, axis), not statistics of another kind."),
    (lambda: jn.layer_norm([[1, 2], [3]]), ValueError, "layer_norm: `x` must be an array; got a ragged list. Pad it and pass where=."),
    # switches and numbers
    (lambda: jax.jit(lambda t: jn.batch_norm(x, stats, training=t))(True), TypeError, "batch_norm: `training` must be a Python bool; got a traced value. Under jax.jit mark it static with static_argnames='training'; to decide at run time call both branches: jax.lax.cond(flag, lambda: f(training=True), lambda: f(training=False))."),
    (lambda: jn.batch_norm(x, stats, training=1), TypeError, "batch_norm: `training` must be a Python bool; got 1. Under jax.jit mark it static with static_argnames='training'; to decide at run time call both branches: jax.lax.cond(flag, lambda: f(training=True), lambda: f(training=False))."),
    (lambda: train(ghost_size=2, axis_name="d"), ValueError, "batch_norm: `ghost_size` and `axis_name` exclude each other; got ghost_size=2, axis_name='d'. Ghosts split statistics, axis_name joins them: leave one out."),
    (lambda: train(ghost_size=2.5), TypeError, "batch_norm: `ghost_size` must be a Python int; got ghost_size=2.5. It decides shapes, so it cannot be traced."),
    (lambda: train(ghost_size=-1), ValueError, "batch_norm: `ghost_size` must be at least 1; got ghost_size=-1. Pass a positive int."),
    (lambda: train(axis_index_groups=[[0]]), ValueError, "batch_norm: `axis_index_groups` needs an `axis_name`; got axis_index_groups=[[0]]. Name the axis whose devices they group."),
    (lambda: jax.vmap(lambda x: jn.moments(x, 0, axis_name="d", axis_index_groups=[[0, 0]]), axis_name="d")(x), ValueError, "moments: `axis_index_groups` must name every device exactly once; got axis_index_groups=((0, 0),). Axis 'd' has 2 devices."),
    (lambda: jax.vmap(lambda x: jn.merge_over(jn.moments(x, 0), "d", [[0]]), axis_name="d")(x), ValueError, "merge_over: `axis_index_groups` must name every device exactly once; got axis_index_groups=((0,),). Axis 'd' has 2 devices."),
    (lambda: jn.layer_norm(x, epsilon=-1e-6), ValueError, "layer_norm: `epsilon` must not be negative; got epsilon=-1e-06. It is added to the variance inside the root."),
    (lambda: train(epsilon=-1), ValueError, "batch_norm: `epsilon` must not be negative; got epsilon=-1. It is added to the variance inside the root."),
    (lambda: jn.normalize(x, m.mean, m.var, axis=(0, 1), epsilon=-1), ValueError, "normalize: `epsilon` must not be negative; got epsilon=-1. It is added to the variance inside the root."),
    (lambda: jn.rms_norm(x, epsilon=-1), ValueError, "rms_norm: `epsilon` must not be negative; got epsilon=-1. It is added to the variance inside the root."),
    (lambda: jn.group_norm(x, num_groups=2, epsilon=-1), ValueError, "group_norm: `epsilon` must not be negative; got epsilon=-1. It is added to the variance inside the root."),
    (lambda: jn.instance_norm(x, epsilon=-1), ValueError, "instance_norm: `epsilon` must not be negative; got epsilon=-1. It is added to the variance inside the root."),
    (lambda: jn.standardize(x, axis=0, epsilon=-1), ValueError, "standardize: `epsilon` must not be negative; got epsilon=-1. It is added to the variance inside the root."),
    (lambda: train(implementation='fast'), ValueError, "batch_norm: `implementation` must name one that exists; got implementation='fast'. Available: 'xla', 'cpu'; None chooses."),
    (lambda: jn.layer_norm(x, implementation='fast'), ValueError, "layer_norm: `implementation` must name one that exists; got implementation='fast'. Available: 'xla', 'cpu'; None chooses."),
    (lambda: jn.group_norm(x, num_groups=2, implementation='fast'), ValueError, "group_norm: `implementation` must name one that exists; got implementation='fast'. Available: 'xla', 'cpu'; None chooses."),
    (lambda: jn.instance_norm(x, implementation='fast'), ValueError, "instance_norm: `implementation` must name one that exists; got implementation='fast'. Available: 'xla', 'cpu'; None chooses."),
    (lambda: jn.standardize(x, axis=0, epsilon=0.0, implementation='fast'), ValueError, "standardize: `implementation` must name one that exists; got implementation='fast'. Available: 'xla', 'cpu'; None chooses."),
    (lambda: jn.rms_norm(x, implementation="triton"), ValueError, "rms_norm: `implementation` must name one that exists; got implementation='triton'. Available: 'xla', 'cpu'; None chooses."),
    # dtypes
    (lambda: jn.layer_norm(x, dtype=jnp.int32), TypeError, "layer_norm: `dtype` must be floating; got dtype=int32. Cast the result yourself if you want integers."),
    (lambda: jn.layer_norm(x + 0j, dtype=jnp.float32), TypeError, "layer_norm: `dtype` must be complex where x is; got dtype=float32, x of complex64. Take the real part yourself."),
    (lambda: jn.layer_norm("text"), TypeError, "layer_norm: `x` must be an array; got str. Pass a JAX or NumPy array."),
    (lambda: jn.layer_norm(["text"]), TypeError, "layer_norm: `x` must hold numbers; got dtype <U4. Convert it first."),
    (lambda: jn.layer_norm(jax.random.key(0)[None]), TypeError, "layer_norm: `x` must hold numbers; got dtype key<fry>. Convert it first."),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_error(row):
    call, kind, message = ROWS[row]
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    assert str(error.value) == message


def test_changing_trees_name_both():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        jn.recalibrate(lambda batch: {batch: m}, ["a", "b"])
    assert str(error.value) == (
        "recalibrate: `moments_fn` must return the same tree for every batch; got "
        f"{jax.tree.structure({'b': m})} after {jax.tree.structure({'a': m})}. Return every norm's moments each time."
    )


def test_what_is_allowed_although_it_looks_odd():
    np.testing.assert_array_equal(jn.layer_norm(x[..., :1]), 0)  # one value: its deviation is 0
    assert jn.layer_norm([1, 2, 3]).shape == (3,)
    assert jn.group_norm(x, num_groups=np.int64(2)).shape == x.shape
    assert jn.batch_norm(x[:1], None, training=True)[0].shape == (1, 3, 4)  # space counts
    assert jn.batch_norm(x[:1, :1], stats, training=False)[0].shape == (1, 1, 4)
    assert jax.jit(lambda e: jn.layer_norm(x, epsilon=e))(1e-6).shape == x.shape
