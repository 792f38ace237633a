"""A call outside any trace is one program: static facts are checked once, values in every call."""

import collections
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm.arguments import Call

STATS = jn.RunningStats.init(3)
CALLS = {
    "layer_norm": lambda x, **options: jn.layer_norm(x, **options),
    "rms_norm": lambda x, **options: jn.rms_norm(x, **options),
    "add_layer_norm": lambda x, **options: jn.add_layer_norm(x, x, **options),
    "batch_norm": lambda x, **options: jn.batch_norm(x, STATS, **{"training": True} | options),
    "inference": lambda x, **options: jn.batch_norm(x, STATS, training=False, **options),
    "group_norm": lambda x, **options: jn.group_norm(x, group_size=1, axis=1, **options),
    "instance_norm": lambda x, **options: jn.instance_norm(x, **options),
}
each = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(2, 3, (4, 5, 3)), jnp.float32)


@pytest.fixture
def checks(monkeypatch):
    made, look = [], Call.axes

    def axes(self, *args):
        made.append(self.function)
        return look(self, *args)

    monkeypatch.setattr(Call, "axes", axes)
    return made


@each
def test_static_facts_are_checked_once(call, x, checks):
    jax.clear_caches()
    call(x, epsilon=0.1)
    assert checks
    checks.clear()
    for value in (0.1, 0.2):
        call(x + 1, epsilon=value)
    assert not checks
    call(x[:2], epsilon=0.2)
    assert checks, "another shape is another fact"


@each
def test_values_are_those_of_this_call(call, x):
    call(x, epsilon=0.1)
    y, traced = jax.tree.leaves(call(x, epsilon=9.0)), jax.tree.leaves(jax.jit(lambda x: call(x, epsilon=9.0))(x))
    np.testing.assert_allclose(y[0], traced[0], rtol=1e-6)
    assert float(jnp.std(jax.tree.leaves(call(x, epsilon=1e9))[0])) < 1e-3
    for negative in (-1.0, jnp.float32(-1)):
        with pytest.raises(ValueError, match="`epsilon` must not be negative"):
            call(x, epsilon=negative)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (lambda x: jn.layer_norm(x, axis=1), lambda x: jn.layer_norm(x, axis=1.0), "`axis` must be an int"),
        (lambda x: jn.layer_norm(x, axis=(1, 2)), lambda x: jn.layer_norm(x, axis=(1.0, 2)), "`axis` must be an int"),
        (
            lambda x: jn.batch_norm(x, STATS, training=True),
            lambda x: jn.batch_norm(x, STATS, training=1),
            "`training` must be a Python bool",
        ),
        (
            lambda x: jn.batch_norm(x, STATS, training=True, debias=True),
            lambda x: jn.batch_norm(x, STATS, training=True, debias=1),
            "`debias` must be a Python bool",
        ),
        (lambda x: jn.group_norm(x, num_groups=3), lambda x: jn.group_norm(x, num_groups=3.0), "must be a Python int"),
    ],
)
def test_equal_is_not_the_same(good, bad, message, x):
    """1, True and 1.0 have one hash: what was found right for one says nothing of the others."""
    good(x)
    with pytest.raises(TypeError, match=message):
        bad(x)


@pytest.mark.parametrize("offset", [1.0, 1, 0.5, np.float32(0.5), 2**31])
def test_an_offset_is_added(offset, x):
    scale = jnp.array([1.0, 2.0, 3.0])
    expected = jn.layer_norm(x, scale + np.float32(offset))
    np.testing.assert_allclose(jn.layer_norm(x, scale, scale_offset=offset), expected, rtol=1e-6)


def test_numbers_may_be_of_any_size(x):
    assert float(jnp.max(jnp.abs(jn.layer_norm(x, epsilon=10**30)))) < 1e-12


@each
def test_traced_it_is_part_of_the_program_around_it(call, x):
    names = {e.params.get("name", "") for e in jax.make_jaxpr(call)(x).eqns}
    assert not {name for name in names if name.endswith("_norm") or name.endswith("_features")}


def test_different_calls_in_turn_are_not_traced_again(x, checks):
    for _ in range(2):
        checks.clear()
        [jn.layer_norm(x, axis=axis) for axis in (0, 1, (1, 2), None)]
    assert not checks


def test_inference_does_nothing_with_what_it_ignores(x):
    """The logarithm of no momentum would be an infinity, found where nobody asked for it."""
    with jax.debug_infs(True):
        jn.batch_norm(x, STATS, training=False, momentum=jnp.float32(0))


@pytest.mark.parametrize("state", [jn.RunningStats, jnp.ones(3), (1.0, 2.0, 3.0)], ids=["class", "array", "tuple"])
def test_what_is_no_state_is_called_by_its_name(state, x):
    with pytest.raises(TypeError, match=f"must be a RunningStats; got {type(state).__name__}"):
        jn.batch_norm(x, state, training=True)


def test_a_named_tuple_is_a_tuple():
    Point = collections.namedtuple("Point", "a b c")
    np.testing.assert_array_equal(jn.layer_norm(Point(1.0, 2.0, 4.0)), jn.layer_norm((1.0, 2.0, 4.0)))
    jn.layer_norm(jnp.ones((2, 3, 4)), axis=collections.namedtuple("Axes", "a b")(1, 2))
    with pytest.raises(TypeError, match="`axis` must be an int"):
        jn.layer_norm(jnp.ones((2, 3, 4)), axis=collections.namedtuple("Axes", "a b")(1.0, 2))


@each
def test_programs_have_names(call, x):
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()
        heard = []
        patch.setattr(logging.getLogger("jax._src.interpreters.pxla"), "handle", lambda r: heard.append(r.getMessage()))
        call(x, epsilon=0.7)
    assert any(re.search(r"Compiling jit\(_\w+_(norm|features)\)", message) for message in heard), heard


@each
def test_what_is_no_array_is_seen_too(call, x):
    expected = call(x)
    for same in (np.asarray(x), x.tolist(), np.asarray(x).astype(object).astype(np.float32)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), call(same), expected)
    with pytest.raises((TypeError, ValueError), match="`x` must"):
        call("x")


def test_lists_name_axes(x):
    np.testing.assert_array_equal(jn.layer_norm(x, axis=[1, 2]), jn.layer_norm(x, axis=(1, 2)))


def test_inference_returns_the_very_state(x):
    assert jn.batch_norm(x, STATS, training=False)[1] is STATS


def test_momentum_is_a_number_of_double_precision(x, checks):
    """1 - 0.9 in float32 is not 0.1: the rates are worked out before they are arguments; nothing is traced anew."""
    one = jnp.ones((4, 3))
    jn.batch_norm(one, STATS, training=True, momentum=0.5)
    checks.clear()
    _, new = jn.batch_norm(one, STATS, training=True, momentum=0.9)
    np.testing.assert_array_equal(new.mean, np.full(3, np.float32(0.1)))
    assert not checks


@each
def test_without_jit(call, x):
    expected = call(x)
    with jax.disable_jit():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), call(x), expected)


@each
def test_nan_is_found(call, x):
    call(x)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        call(x.at[0, 0, 0].set(jnp.nan))


@each
def test_double_precision_is_another_program(call, x):
    call(x)
    with jax.enable_x64(True):
        y = jax.tree.leaves(call(jnp.asarray(np.asarray(x, np.float64)), epsilon=1e-12))[0]
        assert y.dtype == jnp.float64
        expected = jax.tree.leaves(call(np.asarray(x, np.float64), epsilon=1e-12))[0]
        np.testing.assert_allclose(y, expected, rtol=1e-12)
