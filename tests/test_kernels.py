"""The compiled kernels, called directly, against float64 NumPy; and their library, whole, stale, damaged or absent.

Under sanitizers (they report to the terminal and end the process):

    python -m jaxnorm.kernels.build --sanitize --only avx2
    export ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
    pytest -o addopts= -s tests/test_kernels.py
    unset LD_PRELOAD; python -m jaxnorm.kernels.build
"""  # noqa: E501

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import tolerance, ulp

import jaxnorm as jn
from jaxnorm.kernels import build, cpu, library

ROOT = Path(__file__).parent.parent
served = pytest.mark.skipif(library.missing() is not None, reason=f"no kernels: {library.missing()}")
DTYPES = [
    pytest.param(jnp.dtype(name), id=name, marks=[pytest.mark.full] if name == "float16" else [])
    for name in ("float32", "bfloat16", "float16", "float64")
]

# Canonical shapes [outer, space, kept, inner], how many neighbours share a parameter, and whether centred.
ROWS = [((r, 1, 1, n), 1, True) for r, n in [(1, 1), (5, 1), (3, 2), (4, 3), (9, 17), (6, 1031), (2, 9001)]]
ROWS += [((7, 1, 1, n), 1, False) for n in (1, 3, 17, 1031)]
ROWS += [((3, 1, 4, 30), 5, True), ((2, 1, 3, 96), 48, False), ((3, 1, 5, 7), 1, True), ((6, 1, 1, 40), 8, True)]
ROWS += [((3, 1, 19, 70), 1, True), ((1, 1, 50, 6), 1, False), ((2, 1, 17, 60), 20, True)]  # many sets of parameters
COLUMNS = [((1, n, f, 1), 1, True) for n, f in [(2, 1), (100, 1), (131, 2), (50, 3), (97, 17), (5, 1031), (300, 64)]]
COLUMNS += [((3, 20, 5, 1), 1, True), ((2, 33, 4, 6), 1, True), ((70, 2, 3, 2), 1, True), ((2, 9, 1, 17), 1, True)]
COLUMNS += [((1, 3, 2, 5003), 1, True)]  # so wide that columns are shared out
LARGE = [((100_000, 1, 1, n), 1, True) for n in (1, 3, 17)] + [
    ((1000, 1, 1, 1031), 1, True),
    ((9, 1, 1, 5000), 1, False),
]
LARGE += [((1, 100_000, f, 1), 1, True) for f in (1, 2, 3, 17)] + [((1, 2000, 1031, 1), 1, True)]
LARGE += [((2, 5000, 4, 8), 1, True), ((40, 300, 32, 2), 1, True), ((4, 1, 8, 3000), 300, True)]
CASES = [
    *(pytest.param(*case, id=f"{case[0]}") for case in ROWS + COLUMNS),
    *(pytest.param(*case, id=f"{case[0]}", marks=pytest.mark.full) for case in LARGE),
]
EPSILON = 1e-3


def numbers(dtype, shape, repeat, offset=3.0):
    rng = np.random.default_rng(list(shape))
    wide = np.float64 if dtype == jnp.float64 else np.float32
    x, dy, residual = (np.asarray(rng.normal(size=shape) + m, dtype) for m in (offset, 0.5, 1.0))
    factor, bias = (rng.normal(size=shape[2] * shape[3] // repeat).astype(wide) + 1 for _ in range(2))
    return x, dy, residual, factor, bias, wide(EPSILON)


class Expected:
    """The formulas in float64, for the numbers as they are stored."""

    def __init__(self, x, factor, bias, epsilon, dy, repeat, center):
        x, dy, factor, bias = (np.asarray(a, np.float64) for a in (x, dy, factor, bias))
        axes, each = (1, 3), (1, 1, *x.shape[2:])
        factor, bias = (np.repeat(p, repeat).reshape(each) for p in (factor, bias))

        def mean(a):
            return a.mean(axes, keepdims=True)

        def to_parameter(a):
            return a.sum((0, 1)).reshape(-1, repeat).sum(1)

        self.mean = mean(x) if center else np.zeros_like(mean(x))
        self.mean += mean(x - self.mean) if center else 0  # NumPy adds one by one along all but the last axis
        self.var = mean((x - self.mean) ** 2)
        self.inverse = 1 / np.sqrt(self.var + np.float64(epsilon))
        xhat, g = (x - self.mean) * self.inverse, dy * factor
        self.y = xhat * factor + bias
        self.dx = self.inverse * (g - (mean(g) if center else 0) - xhat * mean(g * xhat))
        self.dfactor, self.dbias = to_parameter(dy * xhat), to_parameter(dy)


def assert_near(actual, expected, n, size=1.0):
    """By absolute error: rounding of n terms of `size`, and in half precision that of the result."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    limit = tolerance(actual.dtype, n, max(size, np.abs(expected).max(initial=0)))
    if actual.dtype.itemsize == 2:
        limit = limit + ulp(expected, actual.dtype) / 2 * 1.01
    error = np.abs(actual.astype(np.float64) - expected)
    assert (error <= limit).all(), f"off by {error.max():.3g}, allowed {np.max(limit):.3g}"


@functools.partial(jax.jit, static_argnames=("repeat", "center"))
def both_ways(x, factor, bias, epsilon, dy, *, repeat, center):
    out = cpu.forward(x, factor, bias, epsilon, center=center, repeat=repeat, statistics=True)
    return out, cpu.backward(x, out.statistics, factor, epsilon, dy, center=center, repeat=repeat)


@served
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "repeat", "center"), CASES)
def test_values_and_gradients(shape, repeat, center, dtype):
    x, dy, _, factor, bias, epsilon = numbers(dtype, shape, repeat)
    with jax.enable_x64(dtype == jnp.float64):
        out, gradients = both_ways(x, factor, bias, epsilon, dy, repeat=repeat, center=center)
    expected = Expected(x, factor, bias, epsilon, dy, repeat, center)
    n, rows = shape[1] * shape[3], shape[0] * shape[1] * repeat
    steep = expected.inverse.max()
    sets = (shape[0], shape[2])
    assert out.y.dtype == gradients.dx.dtype == x.dtype
    assert gradients.dfactor.dtype == gradients.dbias.dtype == out.statistics.var.dtype == factor.dtype
    assert_near(out.y, expected.y, n, steep)
    mean = np.asarray(out.statistics.mean, np.float64) + np.asarray(out.statistics.residual, np.float64)
    assert_near(mean.astype(factor.dtype), expected.mean.reshape(sets), n, 4.0)
    assert_near(out.statistics.var, expected.var.reshape(sets), n, 1.0 if center else 16.0)
    assert_near(gradients.dx, expected.dx, n, 4 * steep**2)
    assert_near(gradients.dfactor, expected.dfactor, rows, rows**0.5 * max(8, steep))
    assert_near(gradients.dbias, expected.dbias, rows, rows**0.5 * 4)


@served
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 1, 1, 37), (2, 50, 3, 4), (2, 7, 3, 1), (1, 9, 48, 1)], ids=str)
@pytest.mark.parametrize("want", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
def test_what_is_not_wanted_is_none_and_changes_nothing(shape, want, dtype):
    x, dy, _, factor, bias, epsilon = numbers(dtype, shape, 1)
    statistics = cpu.measure(jnp.asarray(x))
    whole = cpu.backward(x, statistics, factor, epsilon, dy)
    part = cpu.backward(x, statistics, factor, epsilon, dy, want=tuple(map(bool, want)))
    for wanted, a, b in zip(want, part, whole, strict=True):
        np.testing.assert_array_equal(a, b) if wanted else pytest.fail("not None") if a is not None else None
    ones, zeros = np.ones_like(factor), np.zeros_like(bias)
    bare = cpu.forward(x, None, None, epsilon)
    np.testing.assert_array_equal(bare.y, cpu.forward(x, ones, zeros, epsilon).y)
    assert bare.sum is None
    assert bare.statistics is None
    np.testing.assert_array_equal(
        cpu.backward(x, statistics, None, epsilon, dy).dx, cpu.backward(x, statistics, ones, epsilon, dy).dx
    )
    for a, b in zip(statistics, cpu.forward(x, factor, bias, epsilon, statistics=True).statistics, strict=True):
        np.testing.assert_array_equal(a, b)


@served
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_a_residual_stream_is_added_before_and_its_gradient_after(rows, dtype):
    shape = (rows, 1, 1, 70)
    x, dy, residual, factor, bias, epsilon = numbers(dtype, shape, 1)
    with jax.enable_x64(dtype == jnp.float64):
        out = cpu.forward(x, factor, bias, epsilon, residual=residual)
        plain = cpu.forward(out.sum, factor, bias, epsilon)
        gradients = cpu.backward(out.sum, None, factor, epsilon, dy, residual)
    np.testing.assert_array_equal(out.sum, (x.astype(factor.dtype) + residual.astype(factor.dtype)).astype(dtype))
    np.testing.assert_array_equal(out.y, plain.y)
    expected = Expected(out.sum, factor, bias, epsilon, dy, 1, True)
    assert_near(gradients.dx, expected.dx + residual.astype(np.float64), 70, 8.0)
    assert_near(gradients.dfactor, expected.dfactor, rows, 16.0)


@served
@pytest.mark.parametrize("center", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("n", [3, 70, 768, 1031, 5000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_row_does_not_depend_on_the_others(n, dtype, center):
    """In any bit: alone or with others at once, whatever the threads that share them and the place in memory."""
    rows = 300
    x, dy, _, factor, bias, epsilon = numbers(dtype, (rows, 1, 1, n), 1)
    all_of = both_ways(x, factor, bias, epsilon, dy, repeat=1, center=center)
    for begin, end in [(7, 8), (1, 300), (0, 131)]:
        some = both_ways(x[begin:end], factor, bias, epsilon, dy[begin:end], repeat=1, center=center)
        np.testing.assert_array_equal(some[0].y, all_of[0].y[begin:end])
        np.testing.assert_array_equal(some[1].dx, all_of[1].dx[begin:end])


@served
def test_results_do_not_depend_on_the_number_of_threads():
    """One thread, as the system limits this process to one processor, against as many as there are: every bit."""
    code = """if True:
        import hashlib, os, sys
        if sys.argv[1] == "one": os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import jax, numpy as np
        from jaxnorm.kernels import cpu, library
        assert library.missing() is None
        rng, found = np.random.default_rng(0), hashlib.sha256()
        for shape in [(2000, 1, 1, 300), (1, 9000, 70, 1), (3, 4000, 8, 4), (200, 60, 8, 4)]:
            x, dy = rng.normal(size=(2, *shape)).astype("float32") + 3
            f, epsilon = rng.normal(size=shape[2] * shape[3]).astype("float32"), np.float32(1e-5)
            out = cpu.forward(x, f, f, epsilon, statistics=True)
            for a in jax.tree.leaves((out, cpu.backward(x, out.statistics, f, epsilon, dy))):
                found.update(np.asarray(a).tobytes())
        print(found.hexdigest())
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("XLA_FLAGS", None)
    one, all_of = (
        subprocess.run([sys.executable, "-c", code, n], capture_output=True, text=True, check=True, env=env).stdout
        for n in ("one", "all")
    )
    assert one == all_of


@served
def test_two_python_threads_at_once_compute_what_one_does():
    shapes = [(500, 1, 1, 640), (1, 5000, 64, 1), (4, 2000, 16, 4)]
    inputs = [numbers(jnp.float32, shape, 1) for shape in shapes]

    def compute(i):
        x, dy, _, factor, bias, epsilon = inputs[i]
        return jax.tree.map(np.asarray, both_ways(x, factor, bias, epsilon, dy, repeat=1, center=True))

    alone, wrong = [compute(i) for i in range(len(shapes))], []

    def again(start):
        for k in range(12):
            i = (start + k) % len(shapes)
            same = jax.tree.map(np.array_equal, compute(i), alone[i])
            wrong.extend(leaf for leaf in jax.tree.leaves(same) if not leaf)

    threads = [threading.Thread(target=again, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


@served
@pytest.mark.parametrize("offset", [1e4, 1e6, -1e6])
@pytest.mark.parametrize(
    "shape",
    [(301, 1, 1, 50), (300, 1, 1, 1031), (20, 1, 1, 9001), (1, 9001, 17, 1), (2, 3000, 4, 5), (1, 33, 1031, 1)],
    ids=str,
)
def test_a_large_mean_costs_no_accuracy(shape, offset):
    """float32 N(1e6, 1) is within 1e-5 of float64, also where the first number of all is far from the others."""
    for first in (0.0, 30.0):
        x = np.random.default_rng(1).normal(size=shape)
        x.reshape(shape[0], -1, shape[3])[:, 0, 0] += first
        x = (x + offset).astype(np.float32)
        y = np.asarray(cpu.forward(x, None, None, np.float32(0)).y, np.float64)
        wide = x.astype(np.float64)
        expected = (wide - wide.mean((1, 3), keepdims=True)) / wide.std((1, 3), keepdims=True)
        assert np.abs(y - expected).max() <= 1e-5 * max(1, first)


BEGINNINGS = [  # of each set, in standard deviations, and what the variance may be off by, in roundings
    pytest.param(lambda n: 0 * n, 6, id="normal"),
    pytest.param(lambda n: 30.0 * (n < n.max() / 8), 36, id="an eighth far out"),  # nine times as large squares
    pytest.param(lambda n: 1e4 * (n == 0), 36, id="one far out"),
    pytest.param(lambda n: n * 100 / n.max(), 36, id="drifting"),
]


@served
@pytest.mark.parametrize(("begins", "roundings"), BEGINNINGS)
@pytest.mark.parametrize(
    "shape",
    [(64, 1, 1, 64), (64, 1, 1, 768), (16, 1, 1, 4096), (9, 1, 1, 9001), (1, 32, 64, 1), (1, 2000, 33, 1)],
    ids=str,
)
def test_variance_is_exact_to_a_few_roundings_whatever_a_set_begins_with(shape, begins, roundings):
    n = np.arange(shape[1] * shape[3]).reshape(1, shape[1], 1, shape[3])
    x = (np.random.default_rng(5).normal(size=shape) + begins(n)).astype(np.float32)
    statistics = jax.jit(cpu.measure)(x)
    expected = x.astype(np.float64).var((1, 3))
    error = np.abs(np.asarray(statistics.var, np.float64) / expected - 1)
    assert error.max() <= roundings * np.finfo(np.float32).eps, error.max() / np.finfo(np.float32).eps


@served
@pytest.mark.parametrize("value", [0.1, 3.3, -7.0, 1e6 + 0.1, 1e-20, 0.0])
@pytest.mark.parametrize("n", [1, 2, 41, 47, 1000, 100_000])
def test_a_constant_gives_exactly_zero(n, value):
    for shape in [(3, 1, 1, n), (1, n, 3, 1), (2, n, 2, 2), (3, 1, 2, n)]:
        x = np.full(shape, value, np.float32)
        out = cpu.forward(x, None, None, np.float32(0.1), statistics=True)
        np.testing.assert_array_equal(out.y, 0)
        np.testing.assert_array_equal(out.statistics.var, 0)
        np.testing.assert_array_equal(out.statistics.residual, 0)
        np.testing.assert_array_equal(out.statistics.mean, np.float32(value))


@served
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "place", "its"), [
    ((9, 1, 1, 50), (4, 0, 0, 49), np.s_[4]),
    ((1, 40, 21, 1), (0, 13, 20, 0), np.s_[:, :, 20]),
    ((3, 40, 4, 5), (1, 39, 2, 3), np.s_[1, :, 2]),
], ids=str)  # fmt: skip
def test_a_bad_number_stays_in_its_set(shape, place, its, dtype, bad):
    x, dy, _, factor, bias, epsilon = numbers(dtype, shape, 1)
    spoiled = x.copy()
    spoiled[place] = bad
    with jax.enable_x64(dtype == jnp.float64):
        (out, gradients), (clean, clean_gradients) = (
            both_ways(a, factor, bias, epsilon, dy, repeat=1, center=True) for a in (x, spoiled)
        )
    hit = np.zeros(shape, bool)
    hit[its] = True
    for a, b in ((out.y, clean.y), (gradients.dx, clean_gradients.dx)):
        a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
        np.testing.assert_array_equal(a[~hit], b[~hit])
        assert np.isnan(b[hit]).all()


@served
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_whose_bits_are_all_ones_is_not_rounded_to_a_number(dtype):
    x, _, _, factor, bias, epsilon = numbers(dtype, (4, 1, 1, 9), 1)
    bias[4] = np.array([-1], np.int64 if dtype == jnp.float64 else np.int32).view(bias.dtype)[0]
    with jax.enable_x64(dtype == jnp.float64):
        y = cpu.forward(x, factor, bias, epsilon).y
    np.testing.assert_array_equal(np.isnan(np.asarray(y).astype(np.float64)), [[[np.arange(9) == 4]]] * 4)


@served
@pytest.mark.parametrize(
    "shape", [(0, 1, 1, 5), (5, 1, 1, 0), (0, 4, 3, 2), (2, 0, 3, 2), (2, 4, 0, 2), (2, 4, 3, 0)], ids=str
)
def test_empty_arrays(shape):
    x, parameter = np.zeros(shape, np.float32), np.ones(shape[2] * shape[3], np.float32)
    out, gradients = both_ways(x, parameter, parameter, np.float32(1), x, repeat=1, center=True)
    assert out.y.shape == gradients.dx.shape == shape
    np.testing.assert_array_equal(out.statistics.var, 1)
    np.testing.assert_array_equal(gradients.dfactor, 0)
    np.testing.assert_array_equal(gradients.dbias, 0)


NORMS = {
    "layer_norm": {},
    "rms_norm": {},
    "batch_norm": {"training": True},
    "group_norm": {"num_groups": 8},
    "instance_norm": {},
}


@served
@pytest.mark.parametrize("n", [jnp.ones(7), jnp.ones(0), jnp.ones(3, jnp.int32)], ids=["too many", "none", "integers"])
def test_an_average_of_counts_that_do_not_fit_is_refused_not_read(n):
    a, number = jnp.ones(3), jnp.float32(0.5)
    with pytest.raises(jax.errors.JaxRuntimeError, match="n one number or one for each"):
        jax.block_until_ready(jax.jit(functools.partial(cpu.average, ddof=0))(a, a, a, a, a, a, n, number, number))


@served
@pytest.mark.parametrize("name", NORMS)
def test_nothing_is_left_for_xla_to_compute(name):
    """It hands a program of a thousand operations to another thread, and independent ones to several."""
    x = jnp.ones((8, 16, 4096))
    state = (jn.RunningStats.init(4096),) if name == "batch_norm" else ()
    norm = functools.partial(getattr(jn, name), **NORMS[name])
    compiled = jax.jit(norm).lower(x, *state, jnp.ones(4096)).compile()
    assert compiled.cost_analysis()["flops"] <= 0
    assert " fusion(" not in compiled.as_text()
    assert compiled.as_text().count(" custom-call(") == 1 + len(state)


GIVEN = {"standardize": {"axis": 0, "epsilon": 1e-5}, "batch_renorm": {"training": True}, **NORMS}
CHOOSING = [name for name in jn.__all__ if "implementation" in getattr(getattr(jn, name), "__annotations__", ())]


@served
@pytest.mark.parametrize("name", CHOOSING)
def test_xla_means_no_kernel_at_all(name):
    x = jnp.ones((4, 6, 32))
    state = (jn.RunningStats.init(32),) if name in ("batch_norm", "batch_renorm") else ()

    def text(implementation):
        norm = functools.partial(getattr(jn, name), implementation=implementation, **GIVEN[name])
        both = jax.jit(lambda x: (norm(x, *state), jax.grad(lambda x: jax.tree.leaves(norm(x, *state))[0].sum())(x)))
        return both.lower(x).as_text()

    assert "jaxnorm_" in text(None)
    assert "jaxnorm_" not in text("xla")


@served
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NORMS)
def test_a_kernel_reads_x_where_it_lies(name, dtype):
    """XLA copies what it is told to see in another shape, if that has dimensions of 1 where it does not expect them."""
    x, scale = jnp.ones((4, 6, 5, 32), dtype), jnp.ones(32)
    state = (jn.RunningStats.init(32),) if name == "batch_norm" else ()

    def both(x, scale, dy):
        y, pull = jax.vjp(lambda x, p: getattr(jn, name)(x, *state, p, **NORMS[name]), x, scale)
        return y, pull((dy, y[1]) if state else dy)

    text = jax.jit(both).lower(x, scale, x).compile().as_text()
    assert text.count('custom_call_target="jaxnorm_') == 2 + len(state)
    of_its_size = [line for line in text.splitlines() if re.search(r"= \w+\[[\d,]*\]\S* (copy|fusion)\(", line)]
    sizes = [np.prod([int(n) for n in re.search(r"\[([\d,]*)\]", line)[1].split(",") if n]) for line in of_its_size]
    assert max(sizes, default=0) < x.size, of_its_size


@served
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_and_rounded_as_the_formats_say(dtype):
    """Every number of the format comes in, sums come out to nearest, ties to even."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    tiny = np.finfo(np.float32).tiny  # on its threads XLA takes float32 below for zero
    every[np.abs(every.astype(np.float32)) < tiny] = 0
    a = np.random.default_rng(0).choice(every, (2, 200_000)).astype(dtype)
    a[:, : every.size] = every, np.zeros_like(every)
    got = cpu.forward(*a[:1].reshape(1, 1, 1, 1, -1), None, None, np.float32(1), residual=a[1].reshape(1, 1, 1, -1)).sum
    with np.errstate(all="ignore"):
        expected = (a[0].astype(np.float32) + a[1].astype(np.float32)).astype(dtype).astype(np.float32)
    got = np.asarray(got).astype(np.float32).ravel()
    expected[np.abs(expected) < tiny] = 0
    np.testing.assert_array_equal(got, expected)


# -- the library ------------------------------------------------------------------------------------------------------


def test_kernels_are_here_where_they_can_be_built():
    try:
        build.headers()
        build.compiler()
    except build.CannotBuild:
        pytest.skip("no compiler or no headers")
    if os.environ.get(library.SWITCH) != "off":
        assert library.missing() is None, "python -m jaxnorm.kernels.build"


def test_the_library_is_loaded_once_though_many_threads_ask_first(monkeypatch):
    loads = []

    def slow():
        loads.append(threading.get_ident())
        time.sleep(0.05)

    monkeypatch.setattr(library, "_missing", functools.cache(slow))
    threads = [threading.Thread(target=library.missing) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_implementations_say_what_serves_and_why():
    found = jn.implementations()
    assert [*found] == ["cpu", "xla"]
    assert found["cpu"].startswith("serves" if library.missing() is None else "not available: ")


def run(tmp_path, change, environment=None) -> subprocess.CompletedProcess:
    """What a program prints that uses a copy of the package whose library was changed."""
    shutil.copytree(ROOT / "jaxnorm", tmp_path / "jaxnorm", ignore=shutil.ignore_patterns("__pycache__"))
    change(tmp_path / "jaxnorm/kernels")
    code = """if True:
        import warnings
        import numpy as np, jax
        import jaxnorm as jn
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                reason = jn.implementations()["cpu"]
        print(len(caught), *(w.message for w in caught), sep="|")
        print(reason)
        print(np.abs(jax.jit(jn.layer_norm)(np.array([[1.0, 5.0, 9.0]], np.float32))).max().round(4))
    """
    env = {**os.environ, "PYTHONPATH": str(tmp_path), **(environment or {})}
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)


def record(change):
    def to_folder(folder):
        path = folder / build.RECORD.name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return to_folder


def stale(folder):
    with (folder / build.SOURCE.name).open("a") as source:
        source.write("\n")


def truncated(folder):
    library = folder / build.LIBRARY.name
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def foreign(folder):
    library = folder / build.LIBRARY.name
    content = bytearray(library.read_bytes())
    content[18] ^= 0xFF  # the machine, in an ELF header
    library.write_bytes(content)
    record({"library": build.digest(library)})(folder)


@served
@pytest.mark.parametrize(("change", "word"), [
    (stale, "it is stale, compiled from another cpu.cc"),
    (truncated, "its file is damaged"),
    (record({"ffi": [0, 99]}), "it was compiled for XLA's FFI 0.99, jaxlib has 0."),
    *(pytest.param(*case, marks=pytest.mark.full) for case in [
        (foreign, "it does not load"),
        (record({"machine": "vax"}), "it was compiled for vax, this is"),
        (record({"ffi": [1, 0]}), "it was compiled for XLA's FFI 1.0, jaxlib has 0."),
        (lambda folder: (folder / build.RECORD.name).write_text("{"), "its record cpu.json cannot be read"),
        (lambda folder: (folder / build.RECORD.name).unlink(), "its record cpu.json cannot be read"),
    ]),
], ids=["stale", "truncated", "newer FFI", "foreign", "machine", "other FFI", "bad record", "no record"])  # fmt: skip
def test_a_library_that_does_not_fit_is_reported_once_and_not_used(change, word, tmp_path):
    done = run(tmp_path, change)
    assert not done.returncode, done.stderr
    warned, reason, value = done.stdout.splitlines()
    assert warned.startswith("1|jaxnorm: ")
    assert "cpu.lib is not used: " in warned
    assert word in warned
    assert "python -m jaxnorm.kernels.build" in warned
    assert word in reason
    assert value == "1.2247"


def absent(folder):
    (folder / build.LIBRARY.name).unlink(missing_ok=True)


@pytest.mark.parametrize(("change", "environment", "word"), [
    (absent, {library.SWITCH: "on"}, "not built when jaxnorm was installed"),
    (lambda folder: None, {library.SWITCH: "off"}, "switched off by the environment (JAXNORM_KERNELS=off)"),
], ids=["absent", "off"])  # fmt: skip
def test_a_library_that_is_absent_or_switched_off_is_no_cause_for_warnings(change, environment, word, tmp_path):
    done = run(tmp_path, change, environment)
    assert not done.returncode, done.stderr
    warned, reason, value = done.stdout.splitlines()
    assert warned == "0"
    assert word in reason
    assert value == "1.2247"


def test_the_switch_knows_two_words(tmp_path):
    done = run(tmp_path, lambda folder: None, {library.SWITCH: "of"})
    assert "ValueError: JAXNORM_KERNELS: must be 'on' or 'off'; got 'of'" in done.stderr


def test_without_a_compiler_the_build_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.CannotBuild, match="no C\\+\\+ compiler was found"):
        build.build()
