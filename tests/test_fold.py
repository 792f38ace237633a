"""Folding: the folded layer computes what layer and norm did, on real convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm as jn
from jaxnorm import fold

IMAGES = (2, 7, 6, 4)
LAYERS = {
    "dense": (nn.Dense(6), IMAGES, -1),
    "without bias": (nn.Dense(6, use_bias=False), IMAGES, -1),
    "conv": (nn.Conv(6, (3, 2)), IMAGES, -1),
    "grouped": (nn.Conv(6, (3, 3), feature_group_count=2), IMAGES, -1),
    "depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), IMAGES, -1),
    "transposed": (nn.ConvTranspose(6, (3, 3), strides=(2, 2)), IMAGES, -1),
    "transposed kernel": (nn.ConvTranspose(6, (3, 3), strides=(2, 2), transpose_kernel=True), IMAGES, -2),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scale_offset", [0.0, 1.0])
def test_a_batch_norm_folds_into_the_layer_before_it(layer, scale_offset, rng):
    module, shape, feature_axis = LAYERS[layer]
    x = jnp.asarray(rng.normal(size=shape) + 1, jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = module.init(jax.random.key(0), x)["params"]
        params = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(size=p.shape) / 4, p.dtype), params)
        y = module.apply({"params": params}, x)
        features = y.shape[-1]
        draw = lambda low, high: jnp.asarray(rng.uniform(low, high, features), jnp.float32)
        stats, scale, bias = jn.RunningStats(draw(-1, 2), draw(0.5, 2), jnp.ones(features)), draw(0.5, 2), draw(-1, 1)
        options = {"epsilon": 1e-3, "scale_offset": scale_offset}
        expected, _ = jn.batch_norm(y, stats, scale, bias, training=False, **options)
        arguments = (params["kernel"], params.get("bias"), stats, scale, bias)
        kernel, shift = fold.fold_batch_norm(*arguments, feature_axis=feature_axis, **options)
        folded = module.clone(use_bias=True, parent=None).apply({"params": {"kernel": kernel, "bias": shift}}, x)
    assert_allclose(folded, expected, atol=1e-5)


def test_a_frozen_norm_is_one_product_and_one_sum(rng):
    x = jnp.asarray(rng.normal(size=(5, 4)) + 2, jnp.float32)
    stats = jn.RunningStats(*(jnp.asarray(rng.uniform(0.5, 2, 4), jnp.float32) for _ in range(3)))
    scale, bias = fold.freeze(stats, jnp.arange(4.0), jnp.ones(4), epsilon=0.1)
    expected = jn.batch_norm(x, stats, jnp.arange(4.0), jnp.ones(4), training=False, epsilon=0.1)[0]
    assert_allclose(x * scale[None] + bias[None], expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 4, 6)], ids=["dense", "conv"])
def test_scale_and_bias_fold_into_the_layer_behind(norm, shape, rng):
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 4)) + 1, jnp.float32)
    kernel, before = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, (6,)))
    scale, bias = (jnp.asarray(rng.normal(size=4), jnp.float32) for _ in range(2))
    bias = None if norm == "rms_norm" else bias

    def layer(y, kernel, b):
        if kernel.ndim == 2:
            return jnp.einsum("...i,io->...o", y, kernel) + b.reshape(1, 1, 1, -1)
        y = jax.lax.conv_general_dilated(y, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + b.reshape(1, 1, 1, -1)

    arguments = (scale, bias) if norm == "layer_norm" else (scale,)
    expected = layer(getattr(jn, norm)(x, *arguments, scale_offset=1.0), kernel, before)
    folded, shift = fold.fold_into_next(scale, bias, kernel, before, scale_offset=1.0)
    assert_allclose(layer(getattr(jn, norm)(x), folded, shift), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_division_may_stand_behind_the_product(dtype, rng):
    x, kernel, bias = (jnp.asarray(rng.normal(size=s) + 1, dtype) for s in ((3, 5, 16), (16, 8), (8,)))
    wide = [np.asarray(a, np.float64) for a in (x, kernel, bias)]
    expected = wide[0] / np.sqrt((wide[0] ** 2).mean(-1, keepdims=True) + 1e-6) @ wide[1] + wide[2]
    y = fold.dense_after_rms_norm(x, kernel, bias)
    assert y.dtype == dtype
    assert_allclose(np.asarray(y, np.float64), expected, rtol=1e-5 if dtype == jnp.float32 else 2**-8, atol=1e-5)


def test_a_folded_network_has_no_norm_left_in_its_program(rng):
    """A trained network and its folded form agree; in the folded one nothing is divided and no root is taken."""
    x = jnp.asarray(rng.normal(size=(64, 8)) * 2 + 1, jnp.float32)
    target = jnp.sin(x @ jnp.asarray(rng.normal(size=(8, 3)), jnp.float32))
    params = [{"kernel": jnp.asarray(rng.normal(size=s) / 3, jnp.float32)} for s in ((8, 16), (16, 3))]
    params[0] |= {"scale": jnp.ones(16), "bias": jnp.zeros(16)}

    def network(params, stats, x, training):
        first = params[0]
        h, stats = jn.batch_norm(x @ first["kernel"], stats, first["scale"], first["bias"], training=training)
        return jax.nn.relu(h) @ params[1]["kernel"], stats

    @jax.jit
    def step(params, stats):
        loss = lambda params: (lambda y, s: (jnp.mean((y - target) ** 2), s))(*network(params, stats, x, True))
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), stats, value

    stats, losses = jn.RunningStats.init(16), []
    for _ in range(50):
        params, stats, value = step(params, stats)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    first = params[0]
    kernel, bias = fold.fold_batch_norm(first["kernel"], None, stats, first["scale"], first["bias"])
    folded = jax.jit(lambda x: jax.nn.relu(x @ kernel + bias[None]) @ params[1]["kernel"])
    assert_allclose(folded(x), network(params, stats, x, False)[0], atol=1e-5)
    program = folded.lower(x).compile().as_text()
    assert not any(word in program for word in ("rsqrt", "sqrt", "divide", "subtract"))
    program = jax.jit(lambda x, stats: network(params, stats, x, False)[0]).lower(x, stats).compile().as_text()
    assert "subtract" in program


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (2, 3, 6, 4)], ids=str)
def test_a_norm_in_the_next_layer_whose_inputs_are_last(shape, rng):
    """torch's layout, and Flax's transposed kernels: the bias is summed over everything but the outputs."""
    kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)
    scale, shift, bias = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (4, 4, shape[-2]))
    x = jnp.asarray(rng.normal(size=(3, *shape[:-2], 4)), jnp.float32)  # a patch for every place of the kernel
    layer = lambda x, kernel, bias: jnp.einsum("n...i,...oi->no", x, kernel) + bias[None]
    folded, moved = fold.fold_into_next(scale, shift, kernel, bias, axis=-1)
    assert_allclose(
        layer(jn.layer_norm(x), folded, moved), layer(jn.layer_norm(x, scale, shift), kernel, bias), atol=1e-5
    )


def test_half_precision_statistics_are_frozen_wide():
    stats = jn.RunningStats(jnp.full(2, 3.0, jnp.bfloat16), jnp.full(2, 5.0, jnp.bfloat16), jnp.ones(2))
    scale, bias = fold.freeze(stats, epsilon=0.0)
    assert scale.dtype == bias.dtype == jnp.float32
    assert_allclose(scale, 5**-0.5, rtol=1e-6)


STATS = jn.RunningStats.init(6)
ERRORS = {
    "fold_batch_norm: the statistics must be those of the kernel's output features; got stats of shape (6,), "
    "kernel.shape=(6, 4), feature_axis=-1.": lambda: fold.fold_batch_norm(jnp.ones((6, 4)), None, STATS),
    "freeze: `scale` must have the shape of the statistics": lambda: fold.freeze(STATS, jnp.ones(4)),
    "fold_into_next: `norm_scale` must have the shape of the input features": lambda: fold.fold_into_next(
        jnp.ones(4), None, jnp.ones((6, 4))
    ),
    "dense_after_rms_norm: `kernel` must be [features, outputs]; got kernel.shape=(6, 4), x.shape=(3, 4).": (
        lambda: fold.dense_after_rms_norm(jnp.ones((3, 4)), jnp.ones((6, 4)))
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        ERRORS[message]()
    assert str(caught.value).startswith(message)
