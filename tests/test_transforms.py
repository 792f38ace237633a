"""Every JAX transform, on every norm: each row of TRANSFORMS states what must be equal.

The plain command runs each transform once per derivative rule; CI runs the product with all cases.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CORE, FAMILY
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerance import tolerance

import jaxnorm as jn

TRANSFORMS = {}


def transform(test):
    TRANSFORMS[test.__name__] = test
    return test


class Problem:
    """A case with its data, its float64 reference, and comparison at the case's tolerance."""

    def __init__(self, case):
        self.case = case
        *args, self.dy = case.data()
        self.args = tuple(a for a in args if a is not None)
        self.x, *self.parameters = args
        rng = np.random.default_rng(7)
        self.tangents = tuple(jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in self.args)
        self.value = case.expected(*args)
        self.gradient = tuple(g for g in case.expected_gradient(*args, self.dy) if g is not None)

    def f(self, x, *parameters):
        parameters = list(parameters)
        scale = parameters.pop(0) if self.case.has_scale else None
        return self.case.call(x, scale, *parameters)

    def loss(self, *args):
        return jnp.sum(self.f(*args) * self.dy)

    def close(self, actual, expected, slack: float = 1.0):
        def leaf(a, b):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            np.testing.assert_allclose(
                a, b, rtol=0, atol=slack * tolerance(np.float32, self.case.n, np.abs(b).max(initial=0))
            )

        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        jax.tree.map(leaf, actual, expected)

    def all_arguments(self):
        return tuple(range(len(self.args)))


def batches(args):
    """Three of each argument, none like another."""
    return tuple(jnp.stack([a, a * 2 + 1, 0.5 - a]) for a in args)


@transform
def jit(p):
    p.close(jax.jit(p.f)(*p.args), p.value)


@transform
def grad(p):
    p.close(jax.grad(p.loss, p.all_arguments())(*p.args), p.gradient)


@transform
def grad_of_each_argument_alone(p):
    for i in p.all_arguments():
        p.close(jax.grad(p.loss, i)(*p.args), p.gradient[i])


@transform
def jvp(p):
    """<dy, jvp(t)> = <vjp(dy), t>, with the gradient from the reference."""
    y, dy = jax.jvp(p.f, p.args, p.tangents)
    p.close(y, p.value)
    expected = sum(np.sum(g * np.asarray(t, np.float64)) for g, t in zip(p.gradient, p.tangents, strict=True))
    p.close(np.sum(np.asarray(dy, np.float64) * np.asarray(p.dy)), expected, slack=8)


@transform
def linearize_and_linear_transpose(p):
    y, linear = jax.linearize(p.f, *p.args)
    p.close(y, p.value)
    p.close(linear(*p.tangents), np.asarray(jax.jvp(p.f, p.args, p.tangents)[1]))
    p.close(jax.linear_transpose(linear, *p.args)(p.dy), p.gradient)


@transform
def jacfwd_and_jacrev(p):
    if len(p.args) > 1:
        f = lambda parameter: jnp.ravel(p.f(p.args[0], parameter, *p.args[2:]))[:7]
        p.close(jax.jacfwd(f)(p.args[1]), np.asarray(jax.jacrev(f)(p.args[1])))
    g = lambda x: jnp.sum(jnp.reshape(p.f(x, *p.args[1:]), (x.shape[0], -1)), 1)
    p.close(jax.jacfwd(g)(p.x), np.asarray(jax.jacrev(g)(p.x)))


@transform
def hessian_orders_agree_with_finite_differences(p):
    """All four second-order products along one direction, against the reference's gradient at two points."""
    x, t, rest = p.x, p.tangents[0], p.args[1:]
    grad = lambda x: jax.grad(lambda x: jnp.sum(p.f(x, *rest) * p.dy))(x)
    jvp = lambda x: jax.jvp(lambda x: p.f(x, *rest), (x,), (t,))[1]
    forward_over_reverse = jax.jvp(grad, (x,), (t,))[1]
    reverse_over_reverse = jax.grad(lambda x: jnp.sum(grad(x) * t))(x)
    reverse_over_forward = jax.grad(lambda x: jnp.sum(jvp(x) * p.dy))(x)
    forward_over_forward = jax.jvp(jvp, (x,), (t,))[1]

    def reference_gradient(step):
        x = np.asarray(p.x, np.float64) + step * np.asarray(t, np.float64)
        return p.case.expected_gradient(x, *p.parameters, p.dy)[0]

    expected = (reference_gradient(1e-4) - reference_gradient(-1e-4)) / 2e-4
    for product in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        p.close(product, expected, slack=8)
    p.close(np.sum(forward_over_forward * p.dy), np.sum(expected * np.asarray(t, np.float64)), slack=64)


@transform
def vmap_over_everything(p):
    many = batches(p.args)
    expected = np.stack([p.f(*(a[i] for a in many)) for i in range(3)])
    p.close(jax.vmap(p.f)(*many), expected)


@transform
def vmap_over_x_alone_and_over_parameters_alone(p):
    many = batches(p.args)
    for i in p.all_arguments():
        axes = tuple(0 if i == k else None for k in p.all_arguments())
        mixed = tuple(m if i == k else a for k, (m, a) in enumerate(zip(many, p.args, strict=True)))
        expected = np.stack([p.f(*(m[j] if i == k else m for k, m in enumerate(mixed))) for j in range(3)])
        p.close(jax.vmap(p.f, axes)(*mixed), expected)


@transform
def vmap_over_another_axis(p):
    many = jnp.stack([p.x, p.x + 1, p.x * 2], axis=1)
    expected = np.stack([p.f(many[:, i], *p.args[1:]) for i in range(3)], axis=-1)
    p.close(jax.vmap(lambda x: p.f(x, *p.args[1:]), 1, -1)(many), expected)


@transform
def vmap_of_grad(p):
    many = batches(p.args)
    grad = jax.grad(p.loss, p.all_arguments())
    expected = jax.tree.map(lambda *g: np.stack(g), *[grad(*(a[i] for a in many)) for i in range(3)])
    p.close(jax.jit(jax.vmap(grad))(*many), expected, slack=4)


@transform
def scan_over_layers(p):
    many = batches(p.args[1:])

    def layers(x, many):
        return jax.lax.scan(lambda x, params: (p.f(x, *params), None), x, many, length=3)[0]

    def unrolled(x, many):
        for i in range(3):
            x = p.f(x, *(m[i] for m in many))
        return x

    p.close(layers(p.x, many), np.asarray(unrolled(p.x, many)), slack=4)
    loss = lambda layers: jax.jit(jax.grad(lambda x, many: jnp.sum(layers(x, many) * p.dy), (0, 1)))(p.x, many)
    p.close(loss(layers), loss(unrolled), slack=16)


@transform
def cond(p):
    run = jax.jit(jax.grad(lambda flag, *args: jax.lax.cond(flag, p.loss, lambda *a: 0.0, *args), 1))
    p.close(run(True, *p.args), p.gradient[0])
    np.testing.assert_array_equal(run(False, *p.args), 0)


@transform
def while_loop(p):
    f = lambda x: p.f(x, *p.args[1:])
    run = lambda x: jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, f(c[1])), (0, x))[1]
    twice = jax.jvp(lambda x: f(f(x)), (p.x,), (p.tangents[0],))
    p.close(jax.jit(run)(p.x), np.asarray(twice[0]))
    p.close(jax.jvp(run, (p.x,), (p.tangents[0],)), twice, slack=8)


POLICIES = {
    name: getattr(jax.checkpoint_policies, name)
    for name in ("everything_saveable", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
} | {"names": jax.checkpoint_policies.save_only_these_names("h"), "default": None}


@transform
def remat_with_every_policy(p):
    for policy in POLICIES.values():
        inner = jax.checkpoint(lambda *a: jnp.sin(p.f(*a)), policy=policy)
        loss = jax.grad(lambda *a, f: jnp.sum(f(*a) * p.dy), p.all_arguments())
        plain = partial(loss, f=lambda *a: jnp.sin(p.f(*a)))(*p.args)
        p.close(jax.jit(partial(loss, f=inner))(*p.args), plain, slack=4)


@transform
def eval_shape(p):
    out = jax.eval_shape(p.f, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in p.args))
    assert (out.shape, out.dtype) == (p.x.shape, p.x.dtype)


@transform
def export(p):
    for f, expected in ((p.f, p.value), (jax.grad(p.loss, p.all_arguments()), p.gradient)):
        exported = jax.export.export(jax.jit(f))(*p.args)
        p.close(jax.export.deserialize(exported.serialize()).call(*p.args), expected)


@transform
def check_errors_inside(p):
    """checkify with every check on: nothing inside is NaN or divides by zero, also for constants."""
    for x in (p.x, jnp.full_like(p.x, 2.0)):
        checked = checkify.checkify(jax.jit(jax.grad(p.loss, p.all_arguments())), errors=checkify.all_checks)
        error, _ = checked(x, *p.args[1:])
        assert error.get() is None


@transform
def leak_checking(p):
    with jax.checking_leaks():
        p.close(jax.jit(jax.grad(p.loss, p.all_arguments()))(*p.args), p.gradient)


@transform
def debug_nans(p):
    with jax.debug_nans(True):
        p.close(jax.grad(p.loss, p.all_arguments())(*p.args), p.gradient)


@transform
def donation(p):
    x = jnp.array(p.x, copy=True)
    p.close(jax.jit(p.f, donate_argnums=0)(x, *p.args[1:]), p.value)
    assert x.is_deleted()


@transform
def one_trace_for_equal_shapes(p):
    traces = []
    f = jax.jit(lambda *args: traces.append(0) or p.f(*args))
    f(*p.args)
    f(*(a + 1 for a in p.args))
    assert len(traces) == 1


def _mesh(axis_type=AxisType.Auto, count=None):
    return jax.make_mesh((count,), ("d",), axis_types=(axis_type,), devices=jax.devices()[:count])


@transform
def sharded_jit(p):
    """A batch of inputs sharded over devices, in both kinds of mesh: same numbers, and nothing gathered."""
    many = jnp.stack([p.x + i for i in range(4)])
    grad = jax.jit(jax.vmap(jax.value_and_grad(p.loss), (0, *(None for _ in p.args[1:]))))
    expected = jax.tree.map(np.asarray, grad(many, *p.args[1:]))
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        sharded = jax.device_put(many, NamedSharding(_mesh(axis_type, 4), P("d")))
        p.close(grad(sharded, *p.args[1:]), expected, slack=4)
        assert "all-gather" not in grad.lower(sharded, *p.args[1:]).compile().as_text()


@transform
def shard_map(p):
    many = jnp.stack([p.x + i for i in range(4)])
    rest = p.args[1:]
    first = p.all_arguments()[:2]
    expected = jax.grad(lambda many, *rest: jnp.sum(jax.vmap(lambda x: p.loss(x, *rest))(many)), first)(many, *rest)
    for check_vma in (True, False):
        mapped = jax.shard_map(
            lambda x, *rest: p.f(x[0], *rest)[None],
            mesh=_mesh(count=4),
            in_specs=(P("d"), *(P() for _ in rest)),
            out_specs=P("d"),
            check_vma=check_vma,
        )
        grad = jax.jit(jax.grad(lambda many, *rest: jnp.sum(mapped(many, *rest) * p.dy[None]), first))  # noqa: B023
        p.close(grad(many, *rest), expected, slack=4)


def _plain() -> list:
    """Each transform on one case per derivative rule: measured statistics (with a mean and without), given ones."""
    rules = [next(c for c in CORE if c.name.startswith(name)) for name in ("layer_norm", "batch_norm[1]inference")]
    core = [(t, c) for t in TRANSFORMS for c in rules]
    rest = [(t, c) for t in TRANSFORMS for c in [*CORE, *FAMILY] if c not in rules]
    rest = [(t, c) for t, c in rest if not (t.startswith("hessian") and "second order" in c.lacks)]
    rest = [(t, c) for t, c in rest if not (t == "sharded_jit" and "sharding" in c.lacks)]
    return [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in core] + [
        pytest.param(*pair, id=f"{pair[0]}-{pair[1]}", marks=pytest.mark.full) for pair in rest
    ]


@pytest.mark.parametrize(("name", "case"), _plain())
def test_transform(name, case):
    TRANSFORMS[name](Problem(case))


def state_step(x, stats, **options):
    return jn.batch_norm(x, stats, training=True, **options)


@pytest.mark.parametrize("options", [{}, {"ghost_size": 2}, {"debias": True}, {"momentum": None, "ddof": 1}], ids=str)
def test_state_passes_through_scan_vmap_cond_remat_and_donation(options, rng):
    xs = jnp.asarray(rng.normal(size=(6, 4, 3)) + 2, jnp.float32)
    step = partial(state_step, **options)
    stats = jn.RunningStats.init(3)
    expected = stats
    for x in xs:
        _, expected = step(x, expected)

    def check(actual, expected=expected):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, expected)

    check(jax.jit(lambda stats, xs: jax.lax.scan(lambda s, x: step(x, s)[::-1], stats, xs)[0])(stats, xs))

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), stats)
    _, many = jax.vmap(step)(xs[:2], stacked)
    for i in range(2):
        _, one = step(xs[i], jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        check(jax.tree.map(lambda leaf, i=i: leaf[i], many), one)

    once = step(xs[0], stats)[1]
    check(jax.jit(lambda flag: jax.lax.cond(flag, lambda: step(xs[0], stats)[1], lambda: stats))(True), once)
    check(jax.checkpoint(step)(xs[0], stats)[1], once)
    donated = jax.tree.map(jnp.copy, stats)
    check(jax.jit(step, donate_argnums=1)(xs[0], donated)[1], once)
    assert donated.mean.is_deleted()
    shape = jax.eval_shape(step, xs[0].astype(jnp.bfloat16), stats)[1]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shape) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), stats
    )


def test_state_under_remat_is_bitwise_the_state_without(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)

    def loss(x, wrap):
        y, stats = wrap(state_step)(x, jn.RunningStats.init(3))
        return jnp.sum(y**3), stats

    grads = [jax.jit(jax.grad(partial(loss, wrap=w), has_aux=True))(x) for w in (lambda f: f, jax.checkpoint)]
    jax.tree.map(np.testing.assert_array_equal, grads[0][1], grads[1][1])
    np.testing.assert_allclose(grads[0][0], grads[1][0], atol=1e-5)


def test_no_gradient_flows_through_the_state(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)

    def loss(x, stats):
        _, new = state_step(x, stats)
        return jnp.sum(new.mean) + jnp.sum(new.var)

    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(x, jn.RunningStats.init(3))):
        np.testing.assert_array_equal(gradient, 0)


def test_export_with_a_symbolic_batch(rng):
    (b,) = jax.export.symbolic_shape("b")
    x = jnp.asarray(rng.normal(size=(5, 3, 4)), jnp.float32)
    for f in (
        lambda x: jn.batch_norm(x, jn.RunningStats.init(4), training=True),
        lambda x: jn.group_norm(x, num_groups=2),
        jax.grad(lambda x: jnp.sum(jn.batch_norm(x, None, training=True)[0] ** 3)),
    ):
        exported = jax.export.export(jax.jit(f))(jax.ShapeDtypeStruct((b, 3, 4), jnp.float32))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), exported.call(x), f(x))


@pytest.mark.full
def test_moments_and_modulate_differentiate_in_both_modes(rng):
    x, t, w = (jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for _ in range(3))
    scale, bias = (jnp.asarray(rng.normal(size=5), jnp.float32) for _ in range(2))

    def f(x, scale, bias):
        m = jn.moments(x, 1, where=w > -1)
        return jnp.sum(m.mean**2 * m.var) + jnp.sum(jn.modulate(x, scale, bias, scale_offset=1.0) ** 2 * w)

    wide, step, mask = np.asarray(x, np.float64), np.asarray(t, np.float64) * 1e-5, np.asarray(w) > -1

    def g(x):
        mean = (x * mask).sum(1) / mask.sum(1)
        var = (((x - mean[:, None]) * mask) ** 2).sum(1) / mask.sum(1)
        return (mean**2 * var).sum() + ((x * (1 + np.asarray(scale)) + np.asarray(bias)) ** 2 * np.asarray(w)).sum()

    expected = (g(wide + step) - g(wide - step)) / 2e-5
    np.testing.assert_allclose(jax.jvp(lambda x: f(x, scale, bias), (x,), (t,))[1], expected, rtol=1e-4)
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(x, scale, bias) * t), expected, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.jacfwd(jax.grad(f, 1), 0)(x, scale, bias),
        jax.jacrev(jax.grad(f, 1), 0)(x, scale, bias),
    )
