"""The rule behind every norm: what it keeps, what it computes, on which path, and what crosses between devices."""

import functools
import itertools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import index_of, label
from jax.interpreters import partial_eval as pe
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm.kernels import library

PATHS = ["xla", pytest.param("cpu", marks=pytest.mark.skipif(library.missing() is not None, reason="not compiled"))]
SHAPE = (6, 4, 5, 8)


def arrays(rng, *shapes, dtype=jnp.float32):
    return [jnp.asarray(rng.normal(size=shape) + 2, dtype) for shape in shapes]


NORMS = {  # of (x, scale, bias); those that ask for the statistics keep them
    "layer": lambda x, s, b, **options: jn.layer_norm(x, s, b, **options),
    "rms": lambda x, s, b, **options: jn.rms_norm(x, s, **options),
    "batch": lambda x, s, b, **options: jn.batch_norm(x, None, s, b, training=True, **options)[0],
    "group": lambda x, s, b, **options: jn.group_norm(x, s, b, num_groups=4, **options),
    "instance": lambda x, s, b, **options: jn.instance_norm(x, s, b, **options),
}
AREAS = {"layer": 0, "rms": 0, "batch": 8, "group": 6 * 4, "instance": 6 * 8}  # sets whose statistics are kept


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("name", NORMS)
def test_reverse_mode_keeps_x_scale_and_statistics_alone(name, dtype, path, rng):
    """And row norms no statistics: mean, residual and variance of a row cost less to compute than to keep."""
    (x,) = arrays(rng, SHAPE, dtype=dtype)
    scale, bias = arrays(rng, (8,), (8,))
    kept = jax.tree.leaves(jax.vjp(functools.partial(NORMS[name], implementation=path), x, scale, bias)[1])
    sizes = sorted((a.size, a.dtype) for a in kept if a.ndim)
    expected = [(8, np.float32), (x.size, x.dtype), *[(AREAS[name], np.float32)] * (3 if AREAS[name] else 0)]
    assert sizes == sorted((n, np.dtype(d)) for n, d in expected)


def pulls(jaxpr) -> list:
    """The backward equations in a program, those of programs in it too."""
    programs = [getattr(p, "jaxpr", p) for e in jaxpr.eqns for p in e.params.values()]
    inner = [pulls(p) for p in programs if hasattr(p, "eqns")]
    return [e for e in jaxpr.eqns if e.primitive.name == "pull"] + [*itertools.chain(*inner)]


@pytest.mark.parametrize("name", NORMS)
def test_a_gradient_that_nobody_reads_is_not_computed(name, rng):
    x, scale, bias = arrays(rng, SHAPE, (8,), (8,))
    loss = lambda *args: jnp.sum(NORMS[name](*args) ** 3)
    (alone,) = pulls(jax.make_jaxpr(jax.grad(loss))(x, scale, bias).jaxpr)
    assert [v.aval.size for v in alone.outvars] == [x.size]
    (scales,) = pulls(jax.make_jaxpr(jax.grad(loss, 1))(x, scale, bias).jaxpr)
    assert [v.aval.size for v in scales.outvars] == [8]
    everything = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, scale, bias).jaxpr
    (read,) = pulls(pe.dce_jaxpr(everything, [True, False, False])[0])
    assert [v.aval.size for v in read.outvars] == [x.size]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "name", ["layer", *(pytest.param(n, marks=pytest.mark.full) for n in ("rms", "batch", "group"))]
)
def test_batches_fold_into_the_rule(name, path, rng):
    """Nested vmaps over x, and over x and parameters, stay one forward and one backward; values as one by one."""
    f = functools.partial(NORMS[name], implementation=None if path == "cpu" else path)
    x, dy = arrays(rng, (2, 3, *SHAPE), (2, 3, *SHAPE))
    for axes, shape in (((0, None, None), (8,)), ((0, 0, 0), (2, 3, 8))):
        scale, bias = arrays(rng, shape, shape)
        many = jax.vmap(jax.vmap(f, axes), axes)
        pick = lambda a, i, j: a[i, j] if a.ndim > 1 else a
        each = [[f(x[i, j], pick(scale, i, j), pick(bias, i, j)) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(many(x, scale, bias), np.stack([np.stack(e) for e in each]), atol=2e-5)
        loss = lambda x, s, b: jnp.sum(many(x, s, b) * dy)  # noqa: B023
        jaxpr = jax.make_jaxpr(jax.grad(loss))(x, scale, bias).jaxpr
        assert len(pulls(jaxpr)) == 1
        gradients = jax.jit(jax.grad(loss, (0, 1)))(x, scale, bias)
        one = jax.grad(lambda x, s, b: jnp.sum(f(x, s, b) * dy[1, 2]), (0, 1))
        by_hand = one(x[1, 2], pick(scale, 1, 2), pick(bias, 1, 2))
        np.testing.assert_allclose(gradients[0][1, 2], by_hand[0], atol=1e-4)
        if scale.ndim > 1:
            np.testing.assert_allclose(gradients[1][1, 2], by_hand[1], atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_epsilon_and_offset_have_derivatives_in_row_norms(path, rng):
    x, dy = arrays(rng, (7, 5), (7, 5))
    scale, bias = arrays(rng, (5,), (5,))
    rows, columns = label(np.indices((7, 5))[0]), index_of((7, 5), (1,))
    wide = np.asarray(dy, np.float64)
    value = lambda e, o: np.sum(wide * reference.standardize(x, rows, columns, scale, bias, epsilon=e, offset=o))
    f = lambda e, o: jnp.sum(jn.layer_norm(x, scale, bias, epsilon=e, scale_offset=o, implementation=path) * dy)
    expected = [(value(0.1 + 1e-6, 0.5) - value(0.1 - 1e-6, 0.5)), (value(0.1, 0.5 + 1e-6) - value(0.1, 0.5 - 1e-6))]
    expected = np.array(expected) / 2e-6
    np.testing.assert_allclose(jax.grad(f, (0, 1))(0.1, 0.5), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jvp(f, (0.1, 0.5), (1.0, 2.0))[1], expected @ [1, 2], rtol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["add_layer_norm", "add_rms_norm"])
def test_the_stream_and_the_norm_have_one_backward(name, path, rng):
    x, stream, dy, dh = arrays(rng, *[(3, 4, 8)] * 4)
    (scale,) = arrays(rng, (8,))
    f = functools.partial(getattr(jn, name), implementation=path)
    by_hand = lambda x, r, s: (getattr(jn, name.removeprefix("add_"))(x + r, s, implementation="xla"), x + r)
    y, pull = jax.vjp(f, x, stream, scale)
    expected, pull_by_hand = jax.vjp(by_hand, x, stream, scale)
    assert_close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4))
    assert_close(y, expected)
    assert_close(pull((dy, dh)), pull_by_hand((dy, dh)))
    assert_close(*(jax.jvp(g, (x, stream, scale), (dy, dh, scale)) for g in (f, by_hand)))
    kept = jax.tree.leaves(pull)
    assert sorted(a.size for a in kept if a.ndim) == [8, x.size]


# -- the forms that kernels know ---------------------------------------------------------------------------------------


def _spans(rng, shape, axes) -> list:
    """Parameters of the kept axes, of the reduced ones, of the first and last axis, of one number, and none."""
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    reduced = tuple(n if a in axes else 1 for a, n in enumerate(shape))
    ends = tuple(n if a in (0, len(shape) - 1) else 1 for a, n in enumerate(shape))
    return [[None, None], *([*arrays(rng, s, s)] for s in (kept, reduced, ends, (1,) * len(shape)))]


AXES = [a for n in range(4) for a in itertools.combinations(range(4), n + 1)]
SOME = {(3,), (1, 3), (0, 1)}


@pytest.mark.skipif(library.missing() is not None, reason="not compiled")
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("axes", [a if a in SOME else pytest.param(a, marks=pytest.mark.full) for a in AXES], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 2, 5), pytest.param((3, 1, 17, 1), marks=pytest.mark.full)], ids=str)
def test_whatever_the_axes_both_paths_agree(shape, axes, center, rng):
    """Where no kernel serves, the default falls back; where one does, it gives what the formulas give."""
    x, dy = arrays(rng, shape, shape)

    @functools.partial(jax.jit, static_argnums=0)
    def everything(path, x, spans):
        def f(x, *parameters):
            options = {"axis": axes, "epsilon": 0.1, "center": center, "implementation": path}
            y, m = jn.standardize(x, *parameters, **options)
            return (y, m.mean, m.var)

        results = [jax.vjp(f, x, *parameters) for parameters in spans]
        return [(out, pull((dy, *map(jnp.zeros_like, out[1:])))) for out, pull in results]

    spans = _spans(rng, shape, axes)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, *(everything(path, x, spans) for path in (None, "xla")))


@pytest.mark.skipif(library.missing() is not None, reason="not compiled")
def test_a_forced_path_is_taken_or_refused(rng):
    x, scale, bias = arrays(rng, (4, 8), (8,), (8,))
    text = lambda f, *args: jax.jit(f).lower(*args).compile().as_text()
    rows = lambda x, i: jn.layer_norm(x, scale, bias, implementation=i)
    columns = lambda x, i: jn.standardize(x, axis=0, epsilon=0.0, implementation=i)[0]
    for f in (rows, columns):
        assert "custom-call" in text(functools.partial(f, i="cpu"), x)
        assert "custom-call" not in text(functools.partial(f, i="xla"), x)
    for wrong, why in (
        (lambda: jn.layer_norm(x, where=x > 0, implementation="cpu"), "a mask"),
        (lambda: jn.layer_norm(x.astype(jnp.complex64), implementation="cpu"), "complex"),
        (lambda: jn.layer_norm(x, dtype=jnp.bfloat16, implementation="cpu"), "the dtype of x"),
        (lambda: jn.layer_norm(x[:, :, None, None], axis=(0, 2), implementation="cpu"), None),
        (lambda: jn.standardize(jnp.ones((2, 3, 2, 3, 2)), axis=(1, 3), epsilon=0.0, implementation="cpu"), "no form"),
        (lambda: jax.export.export(jax.jit(lambda x: jn.layer_norm(x, implementation="cpu")))(x), "exported"),
    ):
        if why is None:
            wrong()
        else:
            with pytest.raises(ValueError, match=f"implementation='cpu'.*{why}"):
                wrong()


@pytest.mark.skipif(library.missing() is not None, reason="not compiled")
def test_sets_much_wider_than_high_are_left_to_the_formulas_unless_the_kernels_are_asked_for():
    """Batch norm of few images with features first, forward and backward; with features last it is the kernels'."""

    def text(shape, feature_axis, implementation):
        options = {"training": True, "feature_axis": feature_axis, "implementation": implementation}
        norm = lambda x: jn.batch_norm(x, None, **options)[0].sum()
        return jax.jit(jax.grad(norm)).lower(jnp.ones(shape)).compile().as_text()

    assert "jaxnorm_" not in text((3, 4, 14, 14), 1, None)
    assert "jaxnorm_" in text((3, 4, 14, 14), 1, "cpu")
    assert "jaxnorm_" in text((4, 4, 14, 14), 1, None)
    assert "jaxnorm_" in text((3, 14, 14, 4), -1, None)


# -- many devices ------------------------------------------------------------------------------------------------------

GRID = {
    "rows": ("layer", P("data"), P(), 1),
    "rows on two axes": ("layer", P("data", "model"), P(), 2),
    "rms": ("rms", P("data"), P(), 1),
    "samples": ("group", P("data"), P(), 1),
    "instances": ("instance", P("data"), P(), 1),
    "features": ("batch", P(None, None, None, "data"), P("data"), 0),
    # The sum; then squares and what rounding left; dscale and dbias are those of dx.
    "a batch": ("batch", P("data"), P(), 3),
}


def crossings(text: str) -> tuple[int, int]:
    return tuple(len(re.findall(rf"= .*\b{name}(?:-start)?\(", text)) for name in ("all-gather", "all-reduce"))


FEW = {"rows", "features", "a batch"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
@pytest.mark.parametrize("case", [c if c in FEW else pytest.param(c, marks=pytest.mark.full) for c in GRID])
def test_sharded_jit_gathers_nothing_and_sums_parameters_once(case, kind, path, rng):
    name, spec, parameter_spec, reductions = GRID[case]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    x, dy = arrays(rng, (8, 4, 5, 8), (8, 4, 5, 8))
    scale, bias = arrays(rng, (8,), (8,))

    def everything(x, scale, bias, dy, path=path):
        y, pull = jax.vjp(functools.partial(NORMS[name], implementation=path), x, scale, bias)
        return y, pull(dy)

    expected = jax.jit(functools.partial(everything, path="xla"))(x, scale, bias, dy)
    run = jax.jit(everything)
    args = put(x, spec), put(scale, parameter_spec), put(bias, parameter_spec), put(dy, spec)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-4), run(*args), expected)
    text = run.lower(*args).compile().as_text()
    gathers, sums = crossings(text)
    assert gathers == 0
    assert sums <= reductions
    if path == "cpu" and case != "a batch":  # of which the formulas sum over devices
        assert "jaxnorm_" in text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("axis", [0, 1])
def test_one_entry_of_a_parameter_to_a_device_is_not_one_for_all(axis, path, rng):
    """Parameters with all of x's dimensions: their share on a device has none that is more than 1."""
    mesh = jax.make_mesh((8,), ("data",))
    x, dy = arrays(rng, (16, 8), (16, 8))
    scale, bias = arrays(rng, (1, 8), (1, 8)) if axis == 0 else arrays(rng, (16, 1), (16, 1))
    sharded = jax.device_put(x, NamedSharding(mesh, P(None, "data")))

    @jax.jit
    def gradients(x, scale, bias, dy):
        f = lambda *args: jn.standardize(*args, axis=axis, epsilon=0.1, implementation=path)[0]
        return jax.vjp(f, x, scale, bias)[1](dy)

    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-4)
    jax.tree.map(close, gradients(sharded, scale, bias, dy), gradients(x, scale, bias, dy))


BEHIND_A_RESHAPE = {
    "ghosts fewer than devices": lambda x, p: jn.batch_norm(x, None, p, training=True, ghost_size=4)[0],
    "ghosts and a remainder": lambda x, p: jn.batch_norm(x, None, p, training=True, ghost_size=3)[0],
    "fewer groups than devices": lambda x, p: jn.group_norm(x.transpose(2, 1, 0), num_groups=2),
    "some samples": lambda x, p: jn.layer_norm(x[:6], p),
    "samples split": lambda x, p: jn.layer_norm(x.reshape(2, 4, 6, 4), p),
    "samples joined": lambda x, p: jn.instance_norm(x.reshape(2, 24, 4), p),
    "unevenly divided": lambda x, p: jn.instance_norm(x[:6].reshape(2, 3, 6, 4), p),
}


@pytest.mark.parametrize("name", BEHIND_A_RESHAPE)
@pytest.mark.parametrize("sizes", [(4,), *(pytest.param(s, marks=pytest.mark.full) for s in ((2, 2), (2, 4)))], ids=str)
def test_axes_that_xla_divides_unevenly_or_by_a_part_of_a_mesh_axis(name, sizes, rng):
    names = ("a", "b")[: len(sizes)]
    devices = jax.devices()[: math.prod(sizes)]
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
    x, p, dy = (jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for shape in ((8, 6, 4), (4,), (192,)))
    norm = BEHIND_A_RESHAPE[name]

    def loss(x, p):
        y = norm(x, p).ravel()
        return jnp.sum(y * dy[: y.size]), y

    def step(x, p):
        return jax.grad(loss, (0, 1), has_aux=True)(x, p)

    expected = jax.jit(step)(x, p)
    for spec in {P(names[0]), P(names), P(names[-1])}:
        found = jax.jit(step)(jax.device_put(x, NamedSharding(mesh, spec)), p)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    ("own", "spec", "found"),
    [
        ((2, 4), P("a", "b"), [("a",), ("b",)]),
        ((2, 4), P(("a", "b")), [("a", "b"), ()]),
        ((2, 4), P(None, ("b", "a")), [(), ("b", "a")]),
        ((8, 1), P("a", "b"), [("a",), ()]),
        ((4, 2), P("a", "b"), [(), ()]),  # parts of the axes of the other mesh
        ((4, 2), P("a"), [(), ()]),
        ((4, 2), P(("a", "b")), [("a", "b"), ()]),
    ],
    ids=str,
)
def test_shardings_are_read_as_axes_of_the_mesh(own, spec, found):
    """Of a mesh of 2 x 4, shardings made with another mesh of the same devices: only whole axes have names."""
    from jax.sharding import Mesh

    from jaxnorm.rules.lowering import _spec

    sharding = NamedSharding(Mesh(np.array(jax.devices()).reshape(own), ("a", "b")), spec)
    mesh = Mesh(np.array(jax.devices()).reshape(own if own == (8, 1) else (2, 4)), ("a", "b"))
    assert _spec(mesh, sharding, 2) == found


def test_a_jax_that_cannot_divide_kernels_is_reported_once(monkeypatch):
    from jax._src import dispatch

    from jaxnorm.rules import lowering

    monkeypatch.setattr(lowering, "_devices_known", False)
    monkeypatch.delattr(dispatch, "prim_requires_devices_during_lowering")
    with pytest.warns(RuntimeWarning, match="kernels cannot be divided over devices: cannot import name") as warned:
        [lowering.know_devices() for _ in range(2)]
    assert len(warned) == 1


def test_moments_first_and_norms_after_are_divided_alike():
    """Whatever is called first in a process teaches JAX of all the primitives."""
    code = (
        "import jax, jax.numpy as jnp, jaxnorm as jn\n"
        "from jax.sharding import NamedSharding, PartitionSpec as P\n"
        "x = jax.device_put(jnp.ones((8, 4)), NamedSharding(jax.make_mesh((8,), ('d',)), P('d')))\n"
        "jn.moments(x, 1)\n"
        "print('all-gather' in jax.jit(jn.layer_norm).lower(x).compile().as_text())\n"
        "print('jaxnorm_' in jax.jit(jn.layer_norm).lower(x).compile().as_text())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out == ["False", str(library.missing() is None)]
