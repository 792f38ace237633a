"""The lessons' own cases, one after the other: what each says, in plain NumPy, and what jaxnorm makes of it.

    python examples/quickstart.py

Every claim is asserted. gamma is `scale`, beta is `bias`, the moving average is `RunningStats`.
"""

import argparse

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

import jaxnorm as jn

np.set_printoptions(precision=4, suppress=True)


def case(title: str, result, expected, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(result, expected, atol=atol)
    print(f"{title}\n{np.asarray(result)}\n")


def the_paint_list() -> None:
    paints = np.array([1.0, 4, 7, 10, 3])
    m = jn.moments(paints, axis=0)
    case("five paints are one feature: average and variance", (m.mean, m.var), (5, 10))
    expected = 2 * (paints - 5) / np.sqrt(10 + 1e-8) + 1
    y, _ = jn.batch_norm(paints[:, None], None, jnp.array([2.0]), jnp.array([1.0]), training=True, epsilon=1e-8)
    case("stretched by gamma 2 and shifted by beta 1", y[:, 0], expected)


def the_class_example() -> None:
    batch, sample = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([[2, 3, 4]])
    y, stats = jn.batch_norm(batch, jn.RunningStats.init(3), training=True, momentum=0.9)
    case("training uses the batch's own statistics", y, (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5))
    case("and moves the running mean a tenth of the way from 0", stats.mean, 0.1 * batch.mean(0))
    case("and the running variance from 1", stats.var, 0.9 + 0.1 * batch.var(0))
    y, _ = jn.batch_norm(sample, stats, training=False)
    case(
        "inference uses the running ones", y, (sample - 0.1 * batch.mean(0)) / np.sqrt(0.9 + 0.1 * batch.var(0) + 1e-5)
    )


def the_whole_tensor() -> None:
    ingredients = np.array([[2.0, 1.0], [10.0, 50.0]])
    expected = (ingredients - ingredients.mean()) / np.sqrt(ingredients.var() + 0.001)
    y = jn.layer_norm(ingredients, axis=None, epsilon=0.001)
    case("one mean for all numbers is layer norm over every axis", y, expected)


def the_three_by_four() -> None:
    x = np.arange(1.0, 13).reshape(3, 4)
    y, _ = jn.batch_norm(x, None, training=True)
    case("the lesson's text has the population variance, 10.6667", y, np.tile([[-1.2247], [0], [1.2247]], 4), 5e-5)
    unbiased = jn.RunningStats.from_moments(jn.moments(x, 0), ddof=1)
    y = jn.normalize(x, unbiased.mean, unbiased.var, axis=0, epsilon=1e-5)
    case("its code calls torch's var, which divides by n - 1: 16", y, np.tile([[-1.0], [0], [1]], 4))


def gamma_and_beta_undo_it() -> None:
    x = np.array([[1.0, 20], [4, 50], [7, 20]])
    m = jn.moments(x, 0)
    y, _ = jn.batch_norm(x, None, jnp.sqrt(m.var + 1e-5), m.mean, training=True)
    case("gamma = sqrt(variance + epsilon) and beta = mean give the input back", y, x)


def without_epsilon() -> None:
    x = np.array([[1.0, 5], [3, 5]])
    y, _ = jn.batch_norm(x, None, training=True, epsilon=0.0)
    case("without epsilon a constant feature is 0 / 0", y, [[-1, np.nan], [1, np.nan]])
    y, _ = jn.batch_norm(x, None, training=True)
    case("with it exactly 0", y[:, 1], [0, 0], atol=0)


def feature_scaling() -> None:
    wine = load_wine().data
    y, stats = jn.batch_norm(wine, jn.RunningStats.init(13), training=True, momentum=0.0, epsilon=0.0)
    case("on raw inputs it is scikit-learn's StandardScaler", y[:2], StandardScaler().fit_transform(wine)[:2])
    again, _ = jn.batch_norm(wine, stats, training=False, epsilon=0.0)
    np.testing.assert_allclose(again, StandardScaler().fit_transform(wine), atol=1e-5)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    the_paint_list()
    the_class_example()
    the_whole_tensor()
    the_three_by_four()
    gamma_and_beta_undo_it()
    without_epsilon()
    feature_scaling()
