"""The root of a matrix, for whitening."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def matrix_sqrt(a: jax.Array) -> jax.Array:
    """The symmetric root of a symmetric positive definite matrix, or of many (for whitening).

    R = A^(1/2) moves by the solution dR of R dR + dR R = dA, a Lyapunov equation. Nothing in it divides by the
    difference of two eigenvalues, as the derivative of an eigendecomposition does: equal ones are no exception.
    """
    values, vectors = jnp.linalg.eigh(a)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[..., None, :]) @ vectors.mT


@matrix_sqrt.defjvp
def _matrix_sqrt_jvp(primals, tangents):
    root = matrix_sqrt(*primals)

    def solve(_, right):  # its own derivatives follow from the equation, not from this solution
        values, vectors = jnp.linalg.eigh(root)
        return vectors @ ((vectors.mT @ right @ vectors) / (values[..., :, None] + values[..., None, :])) @ vectors.mT

    return root, lax.custom_linear_solve(lambda dr: root @ dr + dr @ root, tangents[0], solve, symmetric=True)
