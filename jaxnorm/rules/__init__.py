"""Statistics, standardization, and their derivatives: the only place that defines a derivative.

There are two ways to the same numbers. `composed.py` is ordinary jnp code, for masks, named axes and complex numbers;
`fused.py` has primitives, for everything else: cheap to trace and to call, and with compiled kernels behind them.
`choice.py` chooses. `statistics.py` and `formulas.py` say what is computed, `native.py` and `lowering.py` by what.
`averaging.py` is a step of running statistics.

Notation, for one set of numbers x that shares statistics (n of them count):

    mu = mean(x)        var = mean((x - mu)^2)        sigma = sqrt(var + epsilon)        xhat = (x - mu) / sigma

A tangent dx moves them by

    dmu = mean(dx)      dvar = 2 mean((x - mu) dx)
    dxhat = (dx - dmu) / sigma - xhat dvar / (2 sigma^2)  =  (dx - mean(dx) - xhat mean(xhat dx)) / sigma

The last form is a symmetric linear map of dx: its transpose is itself. Everything in it follows from x and the per-set
statistics: what reverse mode keeps is x, scale, the mask and one mean, residual and variance per set (of rows not even
these); xhat is computed again. Composed, the tangent is a linear function under `jax.checkpoint`, and all else comes
from JAX itself; fused, it is a primitive whose transpose is another. The casts from and to the storage dtype are
inside, so a half-precision gradient is rounded once.

Precision. A mean of numbers near 1e6 is rounded to 0.06 in float32, which is ruinous when sigma is 1. So a centred
set carries its mean in two parts: m, the rounded mean, and the residual mean(x - m); (x - m) - residual is then exact
to rounding of sigma, not of the mean, and the variance is mean((x - m)^2) - residual^2. See
`statistics.py` for why a constant set gives exactly zero.

RMS statistics are the uncentred case: mu = 0, var = mean(x^2), dmu = 0.

Arguments are canonical here: x floating; `where` boolean or None; statistics and parameters with as many dimensions
as x. Statistics come out with the reduced axes kept as size 1.

Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3; Chan, Golub & LeVeque 1983 for the corrected two-pass.
"""

from jaxnorm.rules.choice import measure as measure
from jaxnorm.rules.choice import standardize as standardize
from jaxnorm.rules.choice import standardize_rows as standardize_rows
from jaxnorm.rules.composed import affine as affine
from jaxnorm.rules.composed import apply as apply
from jaxnorm.rules.composed import modulate as modulate
from jaxnorm.rules.composed import recomputed as recomputed
from jaxnorm.rules.composed import width_of as width_of
from jaxnorm.rules.erf import erf as erf
from jaxnorm.rules.formulas import spread as spread
from jaxnorm.rules.roots import matrix_sqrt as matrix_sqrt
from jaxnorm.rules.statistics import Area as Area
from jaxnorm.rules.statistics import Statistics as Statistics
from jaxnorm.rules.statistics import square as square
from jaxnorm.rules.statistics import visible as visible
from jaxnorm.rules.statistics import visible_parameter as visible_parameter
