"""The lessons' own cases, one after the other: what each says, in plain NumPy, and what jaxnorm makes of it.

    python examples/quickstart.py [--seed 0] [--quick]

Every claim is asserted. gamma is `scale`, beta is `bias`, the moving average is `RunningStats`. Leaves the cases'
numbers and the picture of the last one in runs/quickstart/.
"""

import jax.numpy as jnp
import numpy as np
from experiment import CONSOLE, Record, options, recording
from matplotlib import pyplot as plt
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

import jaxnorm as jn

np.set_printoptions(precision=4, suppress=True)


def case(record: Record, title: str, result, expected, atol: float = 1e-5) -> None:
    result = np.asarray(result)
    np.testing.assert_allclose(result, expected, atol=atol)
    record.add(case=title, result=result, expected=np.asarray(expected))
    CONSOLE.print(f"[bold]{title}[/bold]\n{result}\n", highlight=False)


def the_paint_list(record: Record, seed: int) -> None:
    paints = np.array([1.0, 4, 7, 10, 3])
    m = jn.moments(paints, axis=0)
    case(record, "five paints are one feature: average and variance", (m.mean, m.var), (5, 10))
    expected = 2 * (paints - 5) / np.sqrt(10 + 1e-8) + 1
    y, _ = jn.batch_norm(paints[:, None], None, jnp.array([2.0]), jnp.array([1.0]), training=True, epsilon=1e-8)
    case(record, "stretched by gamma 2 and shifted by beta 1", y[:, 0], expected)


def the_class_example(record: Record, seed: int) -> None:
    batch, sample = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([[2, 3, 4]])
    y, stats = jn.batch_norm(batch, jn.RunningStats.init(3), training=True, momentum=0.9)
    case(record, "training uses the batch's own statistics", y, (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5))
    case(record, "and moves the running mean a tenth of the way from 0", stats.mean, 0.1 * batch.mean(0))
    case(record, "and the running variance from 1", stats.var, 0.9 + 0.1 * batch.var(0))
    y, _ = jn.batch_norm(sample, stats, training=False)
    case(
        record,
        "inference uses the running ones",
        y,
        (sample - 0.1 * batch.mean(0)) / np.sqrt(0.9 + 0.1 * batch.var(0) + 1e-5),
    )


def the_whole_tensor(record: Record, seed: int) -> None:
    ingredients = np.array([[2.0, 1.0], [10.0, 50.0]])
    expected = (ingredients - ingredients.mean()) / np.sqrt(ingredients.var() + 0.001)
    y = jn.layer_norm(ingredients, axis=None, epsilon=0.001)
    case(record, "one mean for all numbers is layer norm over every axis", y, expected)


def the_three_by_four(record: Record, seed: int) -> None:
    x = np.arange(1.0, 13).reshape(3, 4)
    y, _ = jn.batch_norm(x, None, training=True)
    case(
        record,
        "the lesson's text has the population variance, 10.6667",
        y,
        np.tile([[-1.2247], [0], [1.2247]], 4),
        5e-5,
    )
    unbiased = jn.RunningStats.from_moments(jn.moments(x, 0), ddof=1)
    y = jn.normalize(x, unbiased.mean, unbiased.var, axis=0, epsilon=1e-5)
    case(record, "its code calls torch's var, which divides by n - 1: 16", y, np.tile([[-1.0], [0], [1]], 4))


def gamma_and_beta_undo_it(record: Record, seed: int) -> None:
    x = np.array([[1.0, 20], [4, 50], [7, 20]])
    m = jn.moments(x, 0)
    y, _ = jn.batch_norm(x, None, jnp.sqrt(m.var + 1e-5), m.mean, training=True)
    case(record, "gamma = sqrt(variance + epsilon) and beta = mean give the input back", y, x)


def without_epsilon(record: Record, seed: int) -> None:
    x = np.array([[1.0, 5], [3, 5]])
    y, _ = jn.batch_norm(x, None, training=True, epsilon=0.0)
    case(record, "without epsilon a constant feature is 0 / 0", y, [[-1, np.nan], [1, np.nan]])
    y, _ = jn.batch_norm(x, None, training=True)
    case(record, "with it exactly 0", y[:, 1], [0, 0], atol=0)


def whatever_comes_in(record: Record, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.gamma(rng.uniform(0.5, 3, 4), rng.uniform(0.1, 100, 4), (256, 4)) + rng.normal(0, 100, 4)
    y, _ = jn.batch_norm(x, None, training=True, epsilon=0.0)
    case(record, "four skewed features of any size and place come out with mean 0", y.mean(0), np.zeros(4))
    case(record, "and standard deviation 1", y.std(0), np.ones(4))


def feature_scaling(record: Record, seed: int) -> None:
    data = load_wine()
    scaled = StandardScaler().fit_transform(data.data)
    y, stats = jn.batch_norm(data.data, jn.RunningStats.init(13), training=True, momentum=0.0, epsilon=0.0)
    case(record, "on raw inputs it is scikit-learn's StandardScaler", y, scaled)
    again, _ = jn.batch_norm(data.data, stats, training=False, epsilon=0.0)
    case(record, "in inference too", again, scaled)
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for ax, values, title in zip(axes, (data.data, y), ("178 wines as measured", "after batch norm"), strict=True):
        ax.boxplot(np.asarray(values), tick_labels=data.feature_names, flierprops={"markersize": 2})
        ax.set_title(title)
    axes[1].tick_params(axis="x", rotation=60)
    record.picture(figure)


CASES = (
    the_paint_list,
    the_class_example,
    the_whole_tensor,
    the_three_by_four,
    gamma_and_beta_undo_it,
    without_epsilon,
    whatever_comes_in,
    feature_scaling,
)


def main() -> None:
    chosen = options(__doc__, "quickstart", seeds=1)
    with recording("quickstart", chosen, len(CASES)) as record:
        for show in CASES:
            show(record, chosen.seed)
            record.advance()
        off = lambda row: np.abs(np.subtract(row["result"], row["expected"]))
        rows = [(row["case"], f"{np.nanmax(off(row)):.1g}") for row in record.rows]
        record.table("largest difference from the plain formula", ("case", "difference"), rows)


if __name__ == "__main__":
    main()
