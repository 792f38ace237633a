"""Weight norm and spectral norm against NumPy, their papers, and Flax's wrappers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((4, 3), 0), ((3, 4, 5), (0, 1)), ((3, 4), -1), ((3, 4), None)], ids=str)
def test_weight_norm_equals_the_formula_and_its_gradient(shape, axis, dtype, rng):
    v = jnp.asarray(rng.normal(size=shape) + 1, dtype)
    wide = np.asarray(v, np.float64)
    norm = np.sqrt((wide**2).sum(axis, keepdims=True))
    g = jnp.asarray(rng.uniform(0.5, 2, np.squeeze(norm, axis).shape), jnp.float32)
    full = np.asarray(g, np.float64).reshape(norm.shape)
    w = jn.weight_norm(v, g, axis=axis)
    assert (w.shape, w.dtype) == (v.shape, v.dtype)
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(w, np.float64), full * wide / norm, rtol=tolerance)
    # Eq. 3 of the paper: the gradients of length and direction.
    dw = jnp.asarray(rng.normal(size=shape), dtype)
    dv, dg = jax.vjp(lambda v, g: jn.weight_norm(v, g, axis=axis), v, g)[1](dw)
    exact = np.asarray(dw, np.float64)
    along = (exact * wide).sum(axis, keepdims=True) / norm
    np.testing.assert_allclose(dg, np.squeeze(along, axis), rtol=1e-4, atol=1e-5)
    expected = full / norm * exact - full * along / norm**2 * wide
    np.testing.assert_allclose(np.asarray(dv, np.float64), expected, rtol=tolerance, atol=1e-5)


def test_weight_norm_starts_as_the_identity_and_leaves_its_arguments(rng):
    v = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    before = np.array(v)
    np.testing.assert_allclose(jn.weight_norm(v, jnp.linalg.norm(v, axis=0), axis=0), v, rtol=1e-6)
    np.testing.assert_array_equal(v, before)


def test_zero_weights_have_finite_derivatives():
    zeros = jnp.zeros((4, 3))
    state = jn.SpectralState.init(jax.random.key(0), 3)
    for f in (
        lambda w: jn.weight_norm(w, axis=0),
        lambda w: jn.spectral_norm(w, state, update=True)[0],
        lambda w: jn.spectral_norm(w, state, update=False)[0],
    ):
        np.testing.assert_array_equal(f(zeros), 0)
        gradient = jax.grad(lambda w, f=f: jnp.sum(f(w) ** 2) + jnp.sum(f(w)))
        assert np.isfinite(gradient(zeros)).all()
        assert np.isfinite(jax.jvp(gradient, (zeros,), (zeros + 1,))[1]).all()


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (2, 3, 4), (6,)], ids=str)
def test_spectral_norm_finds_the_largest_singular_value(shape, rng):
    w = jnp.asarray(rng.normal(size=shape), jnp.float32)
    top = np.linalg.svd(np.asarray(w, np.float64).reshape(-1, shape[-1]), compute_uv=False)[0]
    state = jn.SpectralState.init(jax.random.key(1), shape[-1])
    step = jax.jit(jn.spectral_norm, static_argnames=("update", "n_steps"))
    for _ in range(100):
        w_bar, state = step(w, state, update=True)
    np.testing.assert_allclose(state.sigma, top, rtol=1e-5)
    np.testing.assert_allclose(w_bar, w / top, rtol=1e-4, atol=1e-6)


def test_spectral_norm_in_inference_neither_iterates_nor_changes_its_state(rng):
    w = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    start = jn.SpectralState.init(jax.random.key(1), 3)
    _, state = jn.spectral_norm(w, start, update=True)
    first, same = jn.spectral_norm(w, state, update=False)
    assert same is state
    np.testing.assert_array_equal(jn.spectral_norm(w, same, update=False)[0], first)
    u, matrix = np.asarray(state.u, np.float64), np.asarray(w, np.float64)
    v = matrix @ u / np.linalg.norm(matrix @ u)
    np.testing.assert_allclose(first, matrix / (v @ matrix @ u), rtol=1e-5)


def test_spectral_norm_s_gradient_flows_through_sigma_alone(rng):
    """Miyato et al., eq. 12: (dW - <dW, W_bar> u v^T) / sigma, with u and v constant."""
    w, dw = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    state = jn.SpectralState.init(jax.random.key(1), 3)
    w_bar, new = jn.spectral_norm(w, state, update=True)
    (gradient,) = jax.vjp(lambda w: jn.spectral_norm(w, state, update=True)[0], w)[1](dw)
    u, matrix = np.asarray(new.u, np.float64), np.asarray(w, np.float64)
    v = matrix @ np.asarray(state.u, np.float64)
    v /= np.linalg.norm(v)
    expected = (np.asarray(dw) - np.sum(np.asarray(dw) * np.asarray(w_bar)) * np.outer(v, u)) / float(new.sigma)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_flax_s_wrappers_compute_the_same(n_steps, rng):
    x = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    dense = nn.Dense(3, use_bias=False)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        spectral = nn.SpectralNorm(dense, n_steps=n_steps)
        variables = spectral.init(jax.random.key(0), x, update_stats=False)
        y, new = spectral.apply(variables, x, update_stats=True, mutable=["batch_stats"])
        weight = nn.WeightNorm(dense, scale_init=nn.initializers.normal())
        weights = weight.init(jax.random.key(0), x)["params"]
        z = weight.apply({"params": weights}, x)
    name = "layer_instance/kernel/"
    kernel, before = variables["params"]["layer_instance"]["kernel"], variables["batch_stats"]
    state = jn.SpectralState(before[name + "u"][0], before[name + "sigma"])
    w, state = jn.spectral_norm(kernel, state, update=True, n_steps=n_steps)
    np.testing.assert_allclose(x @ w, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.u, new["batch_stats"][name + "u"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.sigma, new["batch_stats"][name + "sigma"], rtol=1e-5)
    w = jn.weight_norm(weights["layer_instance"]["kernel"], weights[name + "scale"], axis=0)
    np.testing.assert_allclose(x @ w, z, rtol=1e-5, atol=1e-6)


ERRORS = [
    (lambda w, s: jn.weight_norm(w, axis=2), ValueError, "weight_norm: `axis` must lie within"),
    (
        lambda w, s: jn.weight_norm(w, jnp.ones(4), axis=0),
        ValueError,
        "weight_norm: `g` must have the shape of the kept",
    ),
    (lambda w, s: jn.weight_norm(w, axis=0, epsilon=-1), ValueError, "weight_norm: `epsilon` must not be negative"),
    (lambda w, s: jn.spectral_norm(w.T, s, update=True), ValueError, "spectral_norm: `state` must have w's features"),
    (lambda w, s: jn.spectral_norm(w, s, update=1), TypeError, "spectral_norm: `update` must be a Python bool; got 1"),
    (
        lambda w, s: jn.spectral_norm(w, s, update=True, n_steps=0),
        ValueError,
        "spectral_norm: `n_steps` must be at least",
    ),
    (
        lambda w, s: jn.spectral_norm(w.astype(jnp.complex64), s, update=True),
        TypeError,
        "spectral_norm: `w` must be real",
    ),
]


@pytest.mark.parametrize("row", range(len(ERRORS)))
def test_errors(row):
    call, kind, message = ERRORS[row]
    with pytest.raises(kind, match=message):
        call(jnp.ones((4, 3)), jn.SpectralState.init(jax.random.key(0), 3))
