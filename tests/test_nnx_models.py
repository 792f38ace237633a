"""Models written once for `flax.nnx` norms and run with ours: the same tree, outputs and losses over twenty steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import nnx as ours


class Stable:
    """Flax's norms with the stable variance."""

    def __getattr__(self, name):
        return functools.partial(getattr(nnx, name), use_fast_variance=False)


class ResNet(nnx.Module):
    """A residual block in the published order, its last scale at zero."""

    def __init__(self, lib, rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        norm = functools.partial(lib.BatchNorm, 8, momentum=0.9, rngs=rngs)
        self.first, self.second, self.short = conv(4, 8), conv(8, 8), nnx.Conv(4, 8, (1, 1), rngs=rngs)
        self.norms = nnx.List([norm(), norm(scale_init=nnx.initializers.zeros)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norms[0](self.first(x)))
        y = nnx.relu(self.norms[1](self.second(y)) + self.short(x))
        return self.head(y.mean((1, 2)))


class Transformer(nnx.Module):
    """A pre-norm block with layer norm, its MLP with RMS norm."""

    def __init__(self, lib, rngs):
        self.inner, self.outer = nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, qkv_features=8, decode=False, rngs=rngs)
        self.layer, self.rms = lib.LayerNorm(4, rngs=rngs), lib.RMSNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.attention(self.layer(x))
        x = x + self.outer(nnx.gelu(self.inner(self.rms(x))))
        return self.head(x.mean(1))


class UNetBlock(nnx.Module):
    def __init__(self, lib, rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.down, self.deep, self.up = conv(4, 8), conv(8, 16, strides=2), conv(24, 8)
        self.shallow_norm = lib.GroupNorm(8, num_groups=2, rngs=rngs)
        self.deep_norm = lib.GroupNorm(16, num_groups=4, rngs=rngs)
        self.up_norm = lib.InstanceNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        down = nnx.silu(self.shallow_norm(self.down(x)))
        deep = nnx.silu(self.deep_norm(self.deep(down)))
        up = jax.image.resize(deep, (*down.shape[:3], 16), "nearest")
        joined = nnx.silu(self.up_norm(self.up(jnp.concatenate([up, down], -1))))
        return self.head(joined.mean((1, 2)))


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree), jax.tree.structure(tree)


@pytest.mark.full
@pytest.mark.parametrize("model", [ResNet, Transformer, UNetBlock], ids=lambda m: m.__name__)
def test_a_model_written_once_trains_to_the_same_losses(model):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 6, 6, 4)) + 1, jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 8))

    def loss(module):
        log_p = jax.nn.log_softmax(module(x))
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], 1))

    @nnx.jit
    def step(module):
        value, gradients = nnx.value_and_grad(loss)(module)
        nnx.update(module, jax.tree.map(lambda p, g: p - 0.05 * g, nnx.state(module, nnx.Param), gradients))
        return value

    results = []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Flax's own code expects
        for lib in (ours, Stable()):
            module = model(lib, nnx.Rngs(0))
            first = nnx.to_pure_dict(nnx.state(module))
            first = jax.tree.map(np.array, first)
            losses = [float(step(module)) for _ in range(20)]
            module.eval()
            results.append((first, losses, module(x), nnx.to_pure_dict(nnx.state(module))))
    (first, losses, y, last), (first_flax, losses_flax, y_flax, last_flax) = results
    assert shapes(first) == shapes(first_flax)
    jax.tree.map(assert_array_equal, first, first_flax)
    assert_allclose(losses, losses_flax, rtol=0, atol=1e-5)
    assert losses[-1] < losses[0] - 0.01
    assert_allclose(y, y_flax, atol=1e-4)
    jax.tree.map(functools.partial(assert_allclose, atol=1e-4), last, last_flax)
