"""A row of the table of norms: how to call one, what its formula is, and which data it is tried on."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import formulas
import jax.numpy as jnp
import numpy as np
import reference

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One norm with its options, on one shape.

    norm: (x, scale, bias, **common options) -> y. areas, features: labels of x's elements. parameters: scale's shape.
    given: (mean, var) per area where the statistics are not x's own. formula: what it computes, if it is not what
    `reference` says of labels. lacks: general properties that do not apply to it, each with the reason.
    """

    name: str
    function: Callable
    norm: Callable
    shape: Shape
    areas: np.ndarray = field(repr=False)
    features: np.ndarray = field(repr=False)
    parameters: Shape
    center: bool = True
    has_bias: bool = True
    epsilon: float = 1e-5
    given: tuple[np.ndarray, np.ndarray] | None = None
    formula: Callable | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    terms: float = 1.0  # with a formula: the largest terms that dx adds up, in units of dy
    core: bool = False  # one per derivative rule and arrangement of axes: the plain command runs these alone

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.shape))}"

    @property
    def n(self) -> int:
        """Numbers in the largest sum of the gradient: a whole set, or all that share a parameter."""
        return int(max(np.bincount(self.areas.ravel()).max(), np.bincount(self.features.ravel()).max()))

    @property
    def has_scale(self) -> bool:
        return "scale" not in self.lacks

    def call(self, x, scale=None, bias=None, **options):
        return self.norm(x, scale, *([bias] if self.has_bias else []), epsilon=self.epsilon, **options)

    def data(self, seed: int = 0, dtype=np.float32):
        """x with means far from zero that differ by feature, scale, bias, and a random cotangent."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=self.shape) * 1.5 + 3.0 + 0.5 * (self.features % 5)
        scale, bias = rng.uniform(0.5, 1.5, self.parameters), rng.normal(size=self.parameters)
        dy = rng.normal(size=self.shape)
        x, dy = (jnp.asarray(a, dtype) for a in (x, dy))
        wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
        given = (jnp.asarray(p, wide) if has else None for p, has in ((scale, self.has_scale), (bias, self.has_bias)))
        return x, *given, dy

    # -- what is right ------------------------------------------------------------------------------------------------

    def expected(self, x, scale=None, bias=None, where=None, features=None):
        """y in double precision. `features` may say that every element has a scale of its own."""
        if self.formula is not None:
            return formulas.evaluate(self._formula, x, scale, bias, where)
        features = self.features if features is None else features
        return reference.standardize(x, self.areas, features, scale, bias, **self._options, where=where)

    def expected_gradient(self, x, scale, bias, dy, where=None):
        """(dx, dscale, dbias) of sum(dy y)."""
        if self.formula is not None:
            return formulas.gradient(self._formula, x, scale, bias, dy, where)
        labels = (x, self.areas, self.features, scale, bias, dy)
        dx, *rest = reference.standardize_gradient(*labels, **self._options, where=where)
        dscale, dbias = (g.reshape(self.parameters) for g in rest)
        return dx, dscale, dbias if self.has_bias else None

    def gradient_terms(self, x, scale, dy, where=None):
        """The largest terms that an element of dx adds up, of which much may cancel."""
        if self.formula is not None:
            return self.terms * float(np.abs(np.asarray(dy, np.float64)).max())
        labels = (x, self.areas, self.features, scale, dy)
        return reference.gradient_terms(*labels, **self._options, where=where)

    @property
    def _options(self) -> dict:
        return {"epsilon": self.epsilon, "center": self.center, "given": self.given}

    @property
    def _formula(self) -> Callable:
        takes = inspect.signature(self.formula).parameters
        options = {"epsilon": self.epsilon} if "epsilon" in takes else {}

        def formula(x, scale, bias, valid, *, still):
            return self.formula(x, scale, bias, valid, **options, **({"still": still} if "still" in takes else {}))

        return formula


def label(*coordinates: np.ndarray) -> np.ndarray:
    """One number for each combination of coordinates that occurs."""
    flat = np.stack([np.broadcast_to(c, coordinates[0].shape).ravel() for c in coordinates])
    return np.unique(flat, axis=1, return_inverse=True)[1].reshape(coordinates[0].shape)


def index_of(shape: Shape, axes) -> np.ndarray:
    """Position of each element within the axes, counted in their order."""
    index = np.zeros(shape, int)
    for a in sorted(axes):
        index = index * shape[a] + np.indices(shape)[a]
    return index
