"""Every norm equals its float64 reference: value and gradient, in every dtype, over the whole table."""

from functools import partial

import formulas
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
from cases import CORE, FAMILY, STANDARD, having
from hypothesis import given
from hypothesis import strategies as st
from table import Case
from tolerance import assert_close

import jaxnorm as jn

REST = [pytest.param(case, marks=pytest.mark.full) for case in STANDARD if not case.core]
GIVEN = [case for case in CORE if case.given is not None]  # complex x needs a complex state: test_running.py
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64]


def check(case: Case, dtype, where=None) -> None:
    """Value and all gradients, in one compiled program."""
    x, scale, bias, dy = case.data(dtype=dtype)
    mask = {} if where is None else {"where": where}

    @jax.jit
    def value_and_gradients(x, scale, bias, dy):
        y, pull = jax.vjp(lambda *args: case.call(*args, **mask), x, scale, bias)
        return y, pull(dy)

    y, (dx, dscale, dbias) = value_and_gradients(x, scale, bias, dy)
    # Only x and the parameters as they were rounded to dtype reach the reference.
    assert_close(y, case.expected(x, scale, bias, where), dtype, case.n)
    expected = case.expected_gradient(x, scale, bias, dy, where)
    assert_close(dx, expected[0], dtype, case.n, case.gradient_terms(x, scale, dy, where))
    if case.has_scale:
        terms = 0.0 if case.formula is None else float(jnp.max(jnp.abs(dy * x)))  # whose sum may cancel
        assert_close(dscale, expected[1], scale.dtype, case.n, terms)
    if case.has_bias:
        assert_close(dbias, expected[2], bias.dtype, case.n)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("case", having() + REST, ids=str)
def test_value_and_gradient_equal_the_reference(case, dtype):
    with jax.enable_x64(dtype == np.float64):
        check(case, dtype)


@pytest.mark.parametrize("case", FAMILY, ids=str)
def test_the_family_equals_its_formulas(case, rng):
    """In the plain command: float32, with a mask where there is one."""
    check(case, np.float32, where=None if "masks" in case.lacks else rng.random((*case.shape[:-1], 1)) > 0.2)


V = np.linspace(0.5, 1.5, 4)
STYLE = np.random.default_rng(5).normal(size=(3, 4, 4)) * 2 + 1
BATCH, SAMPLE = {"feature": 2, "space": (1,), "epsilon": 1e-3}, {"space": (1,), "epsilon": 1e-3}
LEARNED = {  # what a norm learns, or is given, beside scale and bias: (the norm, its formula, where it is)
    "evo_norm_s0 v": (
        lambda x, v: jn.evo_norm_s0(x, v, group_size=2, epsilon=1e-3),
        lambda x, v, valid: formulas.evo_s0(x, None, None, valid, group_size=2, v=v, **BATCH),
        V,
    ),
    "evo_norm_b0 v": (
        lambda x, v: jn.evo_norm_b0(x, None, v, training=True, epsilon=1e-3)[0],
        lambda x, v, valid: formulas.evo_b0(x, None, None, valid, v=v, **BATCH),
        V,
    ),
    "filter_response_norm threshold": (
        lambda x, tau: jn.filter_response_norm(x, threshold=tau, epsilon=1e-3),
        lambda x, tau, valid: formulas.filter_response(x, None, None, valid, threshold=tau, **BATCH),
        V,
    ),
    "filter_response_norm epsilon": (
        lambda x, epsilon: jn.filter_response_norm(x, epsilon=epsilon),
        lambda x, epsilon, valid: formulas.filter_response(
            x, None, None, valid, threshold=None, feature=2, space=(1,), epsilon=epsilon
        ),
        np.array(0.5),
    ),
    "dynamic_tanh alpha": (
        jn.dynamic_tanh,
        lambda x, alpha, valid: formulas.squash(x, None, None, valid, function="tanh", alpha=alpha),
        np.array(0.5),
    ),
    "dynamic_tanh alpha per feature": (
        jn.dynamic_tanh,
        lambda x, alpha, valid: formulas.squash(x, None, None, valid, function="tanh", alpha=alpha),
        V / 2,
    ),
    "dynamic_erf alpha": (
        lambda x, alpha: jn.dynamic_erf(x, alpha, 0.25),
        lambda x, alpha, valid: formulas.squash(x, None, None, valid, function="erf", alpha=alpha, shift=0.25),
        np.array(0.5),
    ),
    "dynamic_erf shift": (
        lambda x, shift: jn.dynamic_erf(x, 0.5, shift),
        lambda x, shift, valid: formulas.squash(x, None, None, valid, function="erf", alpha=0.5, shift=shift),
        np.array(0.25),
    ),
    "adaptive_instance_norm style": (
        lambda x, style: jn.adaptive_instance_norm(x, style, epsilon=1e-3),
        lambda x, style, valid: formulas.adaptive_instance(x, None, None, valid, style=style, **SAMPLE),
        STYLE,
    ),
    "weight_standardize gain": (
        lambda x, gain: jn.weight_standardize(x, gain, axis=(0, 1), epsilon=1e-3, scaled=True),
        lambda x, gain, valid: formulas.standardized_weight(
            x, formulas.wide(gain), None, valid, axes=(0, 1), epsilon=1e-3, scaled=True
        ),
        V,
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_of_what_else_is_learned(name, rng):
    """By central differences of the formula in extended precision."""
    norm, formula, value = LEARNED[name]
    x, dy = rng.normal(size=(3, 5, 4)) * 1.5 + 0.5, rng.normal(size=(3, 5, 4))
    every, h = np.ones(x.shape, bool), np.longdouble(1e-4)
    expected = np.zeros(value.shape)
    for index in np.ndindex(value.shape):
        step = np.zeros(value.shape, np.longdouble)
        step[index] = h
        sides = [formula(formulas.wide(x), formulas.wide(value) + sign * step, every) for sign in (1, -1)]
        expected[index] = np.sum(dy * (sides[0] - sides[1])) / (2 * h)
    with jax.enable_x64(True):
        y, pull = jax.vjp(lambda value: norm(jnp.asarray(x), value), jnp.asarray(value))
        np.testing.assert_allclose(y, formula(formulas.wide(x), formulas.wide(value), every).astype(float), rtol=1e-12)
        np.testing.assert_allclose(pull(jnp.asarray(dy))[0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("case", having("masks") + REST, ids=str)
@pytest.mark.parametrize("mask", ["full", "broadcast"])
def test_masked_value_and_gradient_equal_the_reference(case, mask, rng):
    shape = case.shape if mask == "full" and "masks per feature" not in case.lacks else (*case.shape[:-1], 1)
    where = rng.random(shape) > 0.3
    check(case, np.float32, where=where)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_threshold_hides_no_nan_and_leaves_the_gradient_of_a_tie_to_what_is_normalized(compiled):
    x, tau = jnp.array([[[3.0], [4.0], [jnp.nan]], [[0.0], [0.0], [5.0]]]), jnp.array([0.0])
    norm = lambda x, tau: jn.filter_response_norm(x, threshold=tau, epsilon=0.0)
    norm = jax.jit(norm) if compiled else norm
    assert np.isnan(norm(x, tau)[0]).all()
    assert np.isnan(norm(jnp.ones((2, 3, 1)), jnp.array([jnp.nan]))).all()
    # Else a network whose scale, bias and threshold begin at 0 stays there.
    assert jax.grad(lambda tau: norm(x, tau)[1].sum())(tau) == 0


@pytest.mark.parametrize("case", having(), ids=str)
def test_without_parameters(case):
    x, *_ = case.data()
    assert_close(case.call(x), case.expected(x), np.float32, case.n)


@pytest.mark.parametrize("case", having(), ids=str)
def test_eager_equals_jit(case):
    x, scale, bias, _ = case.data()
    eager = np.asarray(case.call(x, scale, bias), np.float64)
    assert_close(jax.jit(case.call)(x, scale, bias), eager, np.float32, case.n)


@pytest.mark.parametrize("dtype", [float, "float64", jnp.float64], ids=str)
def test_double_precision_without_64_bits_is_single_as_in_jax(dtype):
    norm = partial(jn.layer_norm, dtype=dtype)
    assert [f(jnp.array([[1.0, 2.0, 5.0]])).dtype for f in (norm, jax.jit(norm))] == [jnp.float32] * 2


@pytest.mark.parametrize("case", having("dtype"), ids=str)
def test_output_dtype_is_asked_for_and_rounded_once(case):
    x, scale, bias, _ = case.data()
    y = case.call(x, scale, bias, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(y, case.call(x, scale, bias).astype(jnp.bfloat16))
    half = x.astype(jnp.bfloat16)
    wide = case.call(half, scale, bias, dtype=jnp.float32)
    np.testing.assert_array_equal(case.call(half, scale, bias), wide.astype(jnp.bfloat16))
    assert wide.dtype == jnp.float32


@pytest.mark.parametrize("case", having("scale", "scale_offset"), ids=str)
def test_scale_offset_is_added_in_float32(case):
    x, _, bias, _ = case.data()
    small = jnp.full(case.parameters, 2.0**-9, jnp.bfloat16)  # 1 + 2^-9 is 1 in bfloat16
    y = case.call(x, small, bias, scale_offset=1.0)
    np.testing.assert_array_equal(y, case.call(x, jnp.full(case.parameters, 1 + 2.0**-9, jnp.float32), bias))
    assert not np.array_equal(y, case.call(x, None, bias))


@pytest.mark.parametrize("case", having("scale"), ids=str)
def test_full_rank_parameters_broadcast_to_x(case, rng):
    """As adaptive norms pass them: every element its own scale and bias."""
    x, *_ = case.data()
    scale, bias = (jnp.asarray(rng.normal(size=case.shape), jnp.float32) for _ in range(2))
    y = case.call(x, scale, bias)
    index = np.arange(x.size).reshape(x.shape)
    bias = bias if case.has_bias else None
    assert_close(y, case.expected(x, scale, bias, features=index), np.float32, case.n)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_half_precision_parameters_have_gradients_rounded_once(dtype, rng):
    """Also where a parameter is repeated: over one of two feature axes, or as a single number."""
    x, dy = (jnp.asarray(rng.normal(size=(64, 4, 6)) + 3, dtype) for _ in range(2))
    scale = jnp.asarray(rng.uniform(0.5, 1.5, (1, 4, 1)), dtype)
    norm = lambda scale: jn.group_norm(x, scale, num_groups=4, feature_axis=(1, 2), axis=())
    labels = (np.indices(x.shape)[0] * 4 + np.indices(x.shape)[1], np.indices(x.shape)[1])
    expected = reference.standardize_gradient(x, *labels, scale, None, dy, epsilon=1e-6)[1].reshape(scale.shape)
    assert_close(jax.vjp(norm, scale)[1](dy)[0], expected, dtype, x.size)
    one = jnp.asarray(1.5, dtype)
    expected = np.sum(np.asarray(x, np.float64) * np.asarray(dy, np.float64))
    assert_close(jax.vjp(lambda s: jn.modulate(x, s, None), one)[1](dy)[0], expected, dtype, x.size)


@pytest.mark.parametrize("case", having(), ids=str)
def test_integers_are_promoted_to_float32(case):
    x = jnp.asarray(np.arange(np.prod(case.shape)).reshape(case.shape) % 11)
    np.testing.assert_array_equal(case.call(x), case.call(x.astype(jnp.float32)))
    assert case.call(x).dtype == jnp.float32


@pytest.mark.parametrize("case", [case for case in having("complex") if case not in GIVEN], ids=str)
def test_complex_input_has_a_real_variance(case, rng):
    x = (rng.normal(size=case.shape) + 1j * rng.normal(size=case.shape) * 2 + 3 - 2j).astype(np.complex64)
    dy = (rng.normal(size=case.shape) + 1j * rng.normal(size=case.shape)).astype(np.complex64)
    np.testing.assert_allclose(case.call(jnp.asarray(x)), case.expected(x), atol=1e-5)

    # The derivative along dy, of a real function, by central differences in double precision.
    loss = lambda x: np.sum(np.real(np.conj(dy) * case.expected(x)))
    step = (rng.normal(size=case.shape) + 1j * rng.normal(size=case.shape)) * 1e-6
    expected = (loss(x + step) - loss(x - step)) / 2e-6
    dx = jax.grad(lambda x: jnp.sum(jnp.real(jnp.conj(dy) * case.call(x))))(jnp.asarray(x))
    np.testing.assert_allclose(np.sum(np.real(dx * step)) / 1e-6, expected, rtol=1e-4, atol=1e-4)


@given(st.data())
def test_any_shape_and_axes(data):
    """Layer, RMS and batch norm on shapes nobody thought of."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), label="shape"))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1), label="axes")))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 2 + 5
    kept = [a for a in range(len(shape)) if a not in axes]
    areas = np.arange(np.prod(shape)).reshape(shape)
    areas = areas.max(axis=axes, keepdims=True) + 0 * areas if kept else areas * 0
    areas = np.unique(areas, return_inverse=True)[1].reshape(shape)
    for center, norm in ((True, jn.layer_norm), (False, jn.rms_norm)):
        expected = reference.standardize(x, areas, areas, None, None, epsilon=0.1, center=center)
        np.testing.assert_allclose(norm(x, axis=axes, epsilon=0.1), expected, rtol=0, atol=1e-5)
    stats = reference.measure(x, areas)
    if kept and stats.count[0] > 1:
        y, state = jn.batch_norm(x, None, feature_axis=tuple(kept), epsilon=0.1, training=True)
        np.testing.assert_allclose(y, reference.standardize(x, areas, areas, None, None, epsilon=0.1), atol=1e-5)
        assert state is None
