"""Rows of the table for norms that do more than standardize: a call, its formula, and the reasons for what it lacks."""

from functools import partial

import formulas
import jax.numpy as jnp
import numpy as np
from table import Case, index_of, label

import jaxnorm as jn

STATELESS = "has no statistics to share"
OWN_SCALE = "takes no scale: the learned length stands outside"
REAL = "its formula is for real numbers"
KEEPS_DTYPE = "returns what it is given, as a weight or a stream is"


def _given(count: int):
    """Running statistics unlike any batch of the table."""
    return 2.0 + 0.25 * np.arange(count, dtype=np.float32), 0.5 + 0.125 * np.arange(count, dtype=np.float32)


def _stats(mean, var):
    return jn.RunningStats(jnp.asarray(mean), jnp.asarray(var), jnp.ones(mean.shape))


def _row(function, norm, formula, shape=(3, 5, 4), *, areas, feature=-1, **extra) -> Case:
    feature = feature % len(shape)
    return Case(
        extra.pop("name", function.__name__),
        function,
        norm,
        shape,
        areas=areas,
        features=index_of(shape, (feature,)),
        parameters=(shape[feature],),
        formula=formula,
        **extra,
    )


def rows() -> list[Case]:
    shape = (3, 5, 4)
    sample, space, feature = np.indices(shape)
    batch, instance, one = feature, label(sample, feature), np.arange(60).reshape(shape)
    mean, var = _given(4)
    v = np.linspace(0.5, 1.5, 4).astype(np.float32)
    threshold = np.linspace(-0.5, 0.5, 4).astype(np.float32)
    style = np.random.default_rng(5).normal(size=(3, 4, 4)).astype(np.float32) * 2 + 1
    cases = []

    for limits in ((3.0, 5.0), (1.1, 0.2)):  # the clips do not bind, and do

        def renorm(x, scale=None, bias=None, limits=limits, **options):
            stats = _stats(mean, var)
            return jn.batch_renorm(x, stats, scale, bias, training=True, r_max=limits[0], d_max=limits[1], **options)[0]

        formula = partial(formulas.renorm, feature=2, old_mean=mean, old_var=var, r_max=limits[0], d_max=limits[1])
        lacks = {
            "complex": "complex x needs a complex state: test_domain.py",
            "zeros": "moves them by d",
            "second order": "r and d are constants of every derivative: the second is not the change of the first",
        }
        cases.append(_row(jn.batch_renorm, renorm, formula, areas=batch, lacks=lacks, name=f"batch_renorm{limits}"))

    def centred(x, scale=None, bias=None, *, epsilon, **options):
        return jn.mean_only_batch_norm(x, None, bias, training=True, **options)[0]

    lacks = {"scale": "is not divided, and so not scaled", "epsilon": "divides by nothing"}
    formula = partial(formulas.center, feature=2)
    cases.append(_row(jn.mean_only_batch_norm, centred, formula, areas=batch, lacks=lacks))

    for method in ("zca", "newton", "cholesky"):

        def white(x, scale=None, bias=None, method=method, **options):
            return jn.whiten(x, None, scale, bias, training=True, method=method, group_size=2, **options)[0]

        lacks = {
            "complex": REAL,
            "masks per feature": "positions count as a whole, since features are measured jointly",
        }
        formula = partial(formulas.whiten, feature=2, groups=2, method=method)
        area = feature // 2
        cases.append(_row(jn.whiten, white, formula, areas=area, epsilon=1e-2, lacks=lacks, name=f"whiten[{method}]"))

    for p in (1, 2, 3.5, np.inf):

        def unit(x, scale=None, bias=None, p=p, **options):
            return jn.lp_normalize(x, p=p, **options)

        lacks = {
            "scale": OWN_SCALE,
            "dtype": KEEPS_DTYPE,
            "epsilon": "bounds the length from below",
            "centre": "not centred",
        }
        if p == np.inf:
            lacks["constants"] = "the largest of equal numbers has no derivative"
        if 1 < p < 2 or p == 1:
            lacks["constants"] = "|x| has no second derivative at 0"
        formula = partial(formulas.lp, axes=2, p=p)
        areas = label(sample, space)
        name = f"lp_normalize[{p}]"
        cases.append(
            _row(jn.lp_normalize, unit, formula, areas=areas, epsilon=1e-3, lacks=lacks, has_bias=False, name=name)
        )

    def grn(x, scale=None, bias=None, **options):
        return jn.global_response_norm(x, scale, bias, **options)

    lacks = {
        "scale_offset": "adds the identity already",
        "centre": "not centred",
        "epsilon": "is added to a mean length",
    }
    formula = partial(formulas.global_response, feature=2, space=(1,))
    cases.append(_row(jn.global_response_norm, grn, formula, areas=sample, lacks=lacks, terms=4.0))  # x N' is summed

    for name, tau in (("", None), ("[threshold]", threshold)):

        def frn(x, scale=None, bias=None, tau=tau, **options):
            return jn.filter_response_norm(x, scale, bias, None if tau is None else jnp.asarray(tau), **options)

        lacks = {"complex": REAL}
        if tau is not None:
            lacks["derivatives"] = "the threshold has no second derivative where it binds"
            lacks["zeros"] = "the threshold is above 0"
        formula = partial(formulas.filter_response, feature=2, space=(1,), threshold=tau)
        cases.append(
            _row(jn.filter_response_norm, frn, formula, areas=instance, lacks=lacks, name="filter_response_norm" + name)
        )

    for size in (3, 4):

        def lrn(x, scale=None, bias=None, *, epsilon, size=size, **options):
            return jn.local_response_norm(x, size=size, alpha=0.5, beta=0.75, k=1.5, **options)

        lacks = {"scale": OWN_SCALE, "dtype": KEEPS_DTYPE, "epsilon": "has k"}
        formula = partial(formulas.local_response, feature=2, size=size, alpha=0.5, beta=0.75, k=1.5)
        name = f"local_response_norm[{size}]"
        cases.append(_row(jn.local_response_norm, lrn, formula, areas=one, lacks=lacks, has_bias=False, name=name))

    def s0(x, scale=None, bias=None, **options):
        return jn.evo_norm_s0(x, jnp.asarray(v), scale, bias, group_size=2, **options)

    lacks = {"complex": REAL, "constants": "its numerator stays: the second derivative, 1 / epsilon^1.5, ends float16"}
    formula = partial(formulas.evo_s0, feature=2, space=(1,), group_size=2, v=v)
    cases.append(_row(jn.evo_norm_s0, s0, formula, areas=label(sample, feature // 2), lacks=lacks))

    def b0(x, scale=None, bias=None, **options):
        return jn.evo_norm_b0(x, None, jnp.asarray(v), scale, bias, training=True, **options)[0]

    def b0_inference(x, scale=None, bias=None, **options):
        return jn.evo_norm_b0(x, _stats(mean, var), jnp.asarray(v), scale, bias, training=False, **options)[0]

    lacks = lacks | {"derivatives": "the larger of two roots has no second derivative where they meet"}
    formula = partial(formulas.evo_b0, feature=2, space=(1,), v=v)
    cases.append(_row(jn.evo_norm_b0, b0, formula, areas=batch, lacks=lacks))
    formula = partial(formula, given=var)
    cases.append(_row(jn.evo_norm_b0, b0_inference, formula, areas=batch, lacks=lacks, name="evo_norm_b0 inference"))

    for function, squashing in ((jn.dynamic_tanh, "tanh"), (jn.dynamic_erf, "erf")):

        def dynamic(x, scale=None, bias=None, *, epsilon, function=function, **options):
            extra = {"shift": jnp.asarray(0.25)} if function is jn.dynamic_erf else {}
            return function(x, jnp.asarray(0.5), scale=scale, bias=bias, **extra, **options)

        lacks = {"complex": REAL, "epsilon": STATELESS}
        if function is jn.dynamic_erf:
            lacks["sharding"] = "beside the gradient of jax.lax.erf XLA gathers, without this library too"
        shift = 0.25 if squashing == "erf" else 0.0
        formula = partial(formulas.squash, function=squashing, alpha=0.5, shift=shift)
        cases.append(_row(function, dynamic, formula, areas=one, lacks=lacks))

    for scaled in (False, True):

        def weight(x, scale=None, bias=None, *, scaled=scaled, **options):
            return jn.weight_standardize(x, scale, axis=(0, 1), scaled=scaled, **options)

        no_mask = "a weight has no padding"
        lacks = {
            "masks": no_mask,
            "masks per feature": no_mask,
            "dtype": KEEPS_DTYPE,
            "scale_offset": "a gain is not stored around zero",
            "empty": "a weight is not empty",
        }
        formula = partial(formulas.standardized_weight, axes=(0, 1), scaled=scaled)
        name = f"weight_standardize{'[scaled]' if scaled else ''}"
        cases.append(
            _row(jn.weight_standardize, weight, formula, areas=feature, lacks=lacks, has_bias=False, name=name)
        )

    def adain(x, scale=None, bias=None, **options):
        wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        return jn.adaptive_instance_norm(x, jnp.asarray(style, wide), **options)

    lacks = {
        "scale": "its scale and bias are the style's",
        "empty": "its style has samples",
        "zeros": "gives them the style's mean",
    }
    formula = partial(formulas.adaptive_instance, space=(1,), style=style)
    cases.append(_row(jn.adaptive_instance_norm, adain, formula, areas=instance, lacks=lacks, has_bias=False))
    return cases
