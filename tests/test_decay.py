"""`decay_mask`: with zero gradients and weight decay, kernels shrink and scales and biases stay."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen as jnl
import jaxnorm.nnx as jnnx


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.ones, ("model",))
        x = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("a", "b")))(x)
        x = jnl.LayerNorm(reduction_axes=(0, 1), feature_axes=(0, 1))(x)
        x = jnl.BatchNorm(use_running_average=True, scale_init=boxed)(nn.Conv(3, (2,))(x[None])[0])
        x = jnl.DynamicErf()(jnl.FilterResponseNorm(learn_epsilon=True)(x))
        return nn.WeightNorm(nn.Dense(2))(jnl.WeightStandardize(nn.Dense(2), scaled=True)(x))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.dense = nnx.Embed(5, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.norms = nnx.List([jnnx.RMSNorm(4, rngs=rngs), jnnx.BatchNorm(4, rngs=rngs), jnnx.DynamicErf(4, rngs=rngs)])
        self.norms.append(jnnx.FilterResponseNorm(4, learn_epsilon=True, rngs=rngs))
        self.wrapped = jnnx.WeightStandardize(nnx.Linear(4, 4, rngs=rngs), scaled=True, rngs=rngs)


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


def linen():
    return Linen().init(jax.random.key(0), jnp.ones((2, 3)))["params"]


PLAIN = {
    "layers": [Layer(jnp.ones((2, 2)), jnp.ones(2)), (jnp.ones(3),)],
    "ln_1_scale": jnp.ones(2),
    "norm.bias": jnp.ones(2),
    "gamma": jnp.ones((2, 2)),
    "rescale_kernel": jnp.ones(1),
    "value": jnp.ones(2),
}
TREES = {
    "Linen": (linen, {"kernel"}),
    "NNX": (lambda: nnx.state(Nnx(), nnx.Param), {"kernel", "embedding"}),
    "NNX pure": (lambda: nnx.to_pure_dict(nnx.state(Nnx(), nnx.Param)), {"kernel", "embedding"}),
    "plain": (lambda: PLAIN, {"w", "rescale_kernel", "value", ""}),
}


def own_name(path) -> str:
    """The key that names the leaf, past any box; nothing for the element of a tuple."""
    names = [getattr(k, "key", getattr(k, "name", "")) for k in path]
    return names[-2] if names[-1] == "value" and len(names) > 1 else str(names[-1])


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("as_function", [True, False])
def test_only_weights_decay(name, as_function):
    make, weights = TREES[name]
    params = make()
    optimizer = optax.add_decayed_weights(0.5, mask=jn.decay_mask if as_function else jn.decay_mask(params))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    seen = set()
    for (path, update), value in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True
    ):
        decays = own_name(path) in weights
        seen.add(decays)
        np.testing.assert_array_equal(update, 0.5 * value if decays else jnp.zeros_like(value))
    assert seen == {True, False}


def test_the_mask_has_the_structure_of_the_parameters():
    for make, _ in TREES.values():
        mask = jn.decay_mask(make())
        assert jax.tree.structure(mask) == jax.tree.structure(make())
        assert {type(leaf) for leaf in jax.tree.leaves(mask)} == {bool}


def test_the_optimizer_of_nnx_spares_the_scales_of_weight_norm():
    """It passes parameters without their boxes, so that a scale is known by where it is."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = jnnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
        kernel = np.array(model.layer_instance.kernel[...])
        optimizer = nnx.Optimizer(model, optax.add_decayed_weights(1.0, mask=jn.decay_mask), wrt=nnx.Param)
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 4)))) * 0)(model))
    np.testing.assert_array_equal(model.scales["kernel",][...], 1)
    np.testing.assert_allclose(model.layer_instance.kernel[...], 2 * kernel, rtol=1e-6)


def test_flat_trees_are_read_by_the_last_part_of_their_paths():
    flat = {("norm", "scale"): jnp.ones(2), ("dense", "kernel"): jnp.ones(2), ("dense", "bias"): jnp.ones(2)}
    assert jn.decay_mask(flat) == {path: path[-1] == "kernel" for path in flat}
