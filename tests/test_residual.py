"""Residual-stream forms: the sum, then the norm of the sum as it is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm as jn

FORMS = {"add_rms_norm": (jn.add_rms_norm, jn.rms_norm, 1), "add_layer_norm": (jn.add_layer_norm, jn.layer_norm, 2)}


@pytest.fixture
def data(rng):
    return [jnp.asarray(rng.normal(size=(3, 4, 6)) + 2, jnp.float32) for _ in range(4)]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
def test_both_results_and_all_gradients(name, dtype, data, rng):
    """Beside the two steps written out; both results have cotangents, as in a network both have consumers."""
    form, norm, count = FORMS[name]
    parameters = [jnp.asarray(rng.uniform(0.5, 1.5, 6), jnp.float32) for _ in range(count)]
    mask = jnp.asarray(rng.random((3, 4, 1)) > 0.3)
    x, residual, *weights = (a.astype(dtype) for a in data)
    x = jnp.where(mask, x, jnp.nan)

    def by_hand(x, residual, *parameters):
        h = jnp.where(mask, x, 0) + jnp.where(mask, residual, 0)  # masked places give 0, in the stream too
        return norm(h, *parameters, where=mask, epsilon=1e-3), h

    f = lambda x, residual, *parameters: form(x, residual, *parameters, where=mask, epsilon=1e-3)
    (y, h), pull = jax.vjp(f, x, residual, *parameters)
    expected, pull_by_hand = jax.vjp(by_hand, x, residual, *parameters)
    assert_array_equal(y, expected[0])
    assert_array_equal(h, expected[1])
    assert y.dtype == h.dtype == dtype
    cotangents = tuple(weights)
    gradients, by_hand_gradients = pull(cotangents), pull_by_hand(cotangents)
    jax.tree.map(assert_array_equal, gradients, by_hand_gradients)
    assert_array_equal(gradients[0], gradients[1])  # a sum hands its cotangent to both
    if dtype == jnp.float32:
        wide = np.asarray(x, np.float64) + np.asarray(residual, np.float64)
        centred = wide - wide.mean(-1, keepdims=True) * (name == "add_layer_norm")
        y64 = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-3)
        affine = y64 * np.asarray(parameters[0]) + (np.asarray(parameters[1]) if count == 2 else 0)
        assert_allclose(y, np.where(mask, affine, 0), atol=1e-5)


def test_the_norm_sees_the_stream_as_it_is_kept():
    """In half precision the sum is rounded first: y is a function of h, which the next block has."""
    x, residual = jnp.array([256.0, 1.0], jnp.bfloat16), jnp.array([1.0, 1.0], jnp.bfloat16)
    y, h = jn.add_layer_norm(x, residual)
    assert h[0] == 256  # 257 does not exist in bfloat16
    assert_array_equal(y, jn.layer_norm(h))


@pytest.mark.parametrize("name", FORMS)
def test_errors(name):
    form = FORMS[name][0]
    with pytest.raises(ValueError, match=f"{name}: .*shape"):
        form(jnp.ones((2, 3)), jnp.ones((3,)))
    with pytest.raises(TypeError, match=f"{name}: .*dtype"):
        form(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.bfloat16))
    with pytest.raises(TypeError, match=f"{name}: `residual` must be an array; got NoneType"):
        form(jnp.ones((2, 3)), None)
    with pytest.raises(ValueError, match="scale"):
        form(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(2))
