"""Inputs on which other libraries fail: large means, constants, half precision near zero, empty arrays."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases import CORE, STANDARD, having
from table import Case

import jaxnorm as jn

OWN = [case for case in CORE if case.given is None]
GIVEN = [case for case in CORE if case.given is not None]
CENTRED = [case for case in OWN if case.center]
DIMENSIONS = [(4096, 257), (31, 33, 64)]


@pytest.mark.parametrize("shape", DIMENSIONS, ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, -1e6])
def test_a_large_mean_costs_no_accuracy(shape, compiled, offset, rng):
    """float32 N(1e6, 1) is within 1e-5 of float64: absolute, per element, for every centred norm."""
    x = (rng.normal(size=shape) + offset).astype(np.float32)
    group = shape[-1] // (1 if shape[-1] % 2 else 2)
    norms = {
        "layer": (lambda x: jn.layer_norm(x), range(len(shape) - 1)),
        "batch": (lambda x: jn.batch_norm(x, None, training=True)[0], [len(shape) - 1]),
        "ghost": (lambda x: jn.batch_norm(x, None, training=True, ghost_size=shape[0])[0], [len(shape) - 1]),
        "group": (lambda x: jn.group_norm(x, group_size=group), None),
    }
    if len(shape) > 2:
        norms["instance"] = (jn.instance_norm, [0, len(shape) - 1])
    for name, (norm, kept) in norms.items():
        wide = x.astype(np.float64)
        if kept is None:
            wide = wide.reshape(*shape[:-1], -1, group)
            kept = [0, len(shape) - 1]
        axes = tuple(a for a in range(wide.ndim) if a not in kept)
        epsilon = 1e-5 if name in ("batch", "ghost") else 1e-6
        mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
        expected = ((wide - mean) / np.sqrt(var + epsilon)).reshape(shape)
        error = np.abs((jax.jit(norm) if compiled else norm)(x) - expected).max()
        assert error <= 1e-5, (name, error)


@pytest.mark.parametrize("value", [0.1, 3.3, -7.0, 1e6 + 0.1, 1e-20, 0.0])
@pytest.mark.parametrize("n", [2, 3, 41, 47, 1000, 100_000])
def test_a_constant_gives_exactly_zero(n, value):
    """For every count, also those whose rounded reciprocal is not exact (41, 47)."""
    rows, columns = jnp.full((3, n), value), jnp.full((n, 3), value)
    for y in (
        jn.layer_norm(rows),
        jn.group_norm(rows, num_groups=1),
        jn.instance_norm(columns[None]),
        jn.batch_norm(columns, None, training=True)[0],
        jax.jit(jax.vmap(jn.layer_norm))(rows),
    ):
        np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(jn.moments(columns, 0).var, 0)
    np.testing.assert_array_equal(jn.moments(columns, 0).mean, columns[0])


@pytest.mark.parametrize("case", having("constants", "derivatives"), ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_first_and_second_derivatives_are_finite_on_constants(case, dtype, value):
    _, scale, bias, dy = case.data(dtype=dtype)
    x = jnp.full(case.shape, value, dtype)
    dy = dy / 64  # second derivatives are 1 / epsilon large; float16 ends at 65504
    loss = lambda x, scale: jnp.sum((case.call(x, scale, bias) * dy).astype(jnp.float32) ** 2)
    gradient = jax.grad(loss, (0, 1))
    assert_finite(jax.jit(gradient)(x, scale))
    assert_finite(jax.jit(lambda x, scale: jax.jvp(gradient, (x, scale), (dy, scale)))(x, scale))


def assert_finite(tree) -> None:
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


@pytest.mark.parametrize("case", [row for row in having("epsilon", "zeros") if row not in GIVEN], ids=str)
def test_half_precision_zeros_with_a_tiny_epsilon_stay_finite(case):
    """1e-12 is 0 in float16, and 0/0 would follow."""
    tiny = Case(**{**vars(case), "epsilon": 1e-12})
    x = jnp.zeros(case.shape, jnp.float16)
    y, pull = jax.vjp(tiny.call, x)
    np.testing.assert_array_equal(y, 0)
    assert_finite(pull(jnp.zeros_like(y)))


def test_epsilon_zero_means_what_the_formula_says():
    x = jnp.array([[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]])
    y = jn.layer_norm(x, epsilon=0.0)
    np.testing.assert_allclose(y[0], (np.array([1, 2, 5]) - 8 / 3) / np.std([1, 2, 5]), atol=1e-6)
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize("case", having("epsilon"), ids=str)
def test_epsilon_stands_inside_the_root(case):
    large = Case(**{**vars(case), "epsilon": 3.0})
    x, scale, bias, _ = case.data()
    np.testing.assert_allclose(large.call(x, scale, bias), large.expected(x, scale, bias), atol=1e-5)


@pytest.mark.parametrize("case", having(), ids=str)
def test_reverse_mode_keeps_x_and_per_set_statistics_alone(case):
    """The residuals of a bfloat16 input: x itself, once, and nothing else of its size."""
    x, scale, bias, _ = case.data(dtype=ml_dtypes.bfloat16)
    large = [leaf for leaf in jax.tree.leaves(jax.vjp(case.call, x, scale, bias)[1]) if leaf.size >= x.size]
    assert [(leaf.size, leaf.dtype) for leaf in large] in ([], [(x.size, x.dtype)])


@pytest.mark.parametrize("function", sorted({case.function.__name__ for case in STANDARD}))
def test_empty_batches(function):
    """No sample: an empty result, and a state that did not move."""
    x = jnp.zeros((0, 4, 6))
    if function == "batch_norm":
        stats = jn.RunningStats(jnp.arange(6.0), jnp.arange(6.0) + 1, jnp.full(6, 3.0))
        for ghost_size in (None, 2):
            y, new = jn.batch_norm(x, stats, training=True, ghost_size=ghost_size)
            jax.tree.map(np.testing.assert_array_equal, new, stats)
    else:
        y = getattr(jn, function)(x, **({"num_groups": 2} if function == "group_norm" else {}))
    assert y.shape == x.shape


@pytest.mark.parametrize("case", [row for row in having("empty") if row not in CORE], ids=str)
def test_the_family_takes_empty_batches(case):
    assert case.call(jnp.zeros((0, *case.shape[1:]))).shape == (0, *case.shape[1:])


@pytest.mark.parametrize("case", CENTRED, ids=str)
def test_output_ignores_shift_and_scale_of_the_input(case):
    x, scale, bias, _ = case.data()
    still = Case(**{**vars(case), "epsilon": 0.0})
    np.testing.assert_allclose(still.call(x * 4 + 8, scale, bias), still.call(x, scale, bias), atol=2e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(still.call(-x, scale, bias), still.call(x, scale, bias), atol=2e-5)


def test_a_row_does_not_depend_on_how_many_rows_there_are(rng):
    x = jnp.asarray(rng.normal(size=(64, 768)) + 2, jnp.float32)
    for norm in (jn.layer_norm, jn.rms_norm):
        many = norm(x)
        for rows in (1, 2, 7):
            np.testing.assert_allclose(norm(x[:rows]), many[:rows], atol=1e-6)
