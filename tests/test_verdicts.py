"""The rules by which the experiments judge, on small cases made by hand."""

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import after_training
import characters
import covariate_shift
import gradient_growth
import init_scale
import input_scale
import learning_rates
import memorizing
import placement
import recalibrate
import regularization
import style
import very_deep
import which_norm
import with_and_without
from experiment import Record, wider
from flower_report import _faster
from networks import grid_steps, per_decade, steps_to, trains

INF = np.inf

# points behind the best norm, by batch size
BEHIND = {
    "none": {1: 0.0, 8: 3.0, 32: 4.0, 256: 9.0},
    "batch": {1: 40.0, 8: 0.5, 32: 0.0, 256: 0.0},
    "group": {1: 1.0, 8: 1.5, 32: 0.9, 256: 1.0},
    "layer": {1: 0.5, 8: 0.0, 32: 2.0, 256: 5.0},
}
SIZES = [1, 8, 32, 256]


def gap(*points: float) -> regularization.Case:
    case = object.__new__(regularization.Case)
    case.gap = np.array(points)
    return case


def shifts(steps: dict, inputs: dict) -> SimpleNamespace:
    """Findings of four seeds: steps to the goal and movement of inputs by norm."""
    return SimpleNamespace(steps=lambda norm: np.array(steps[norm]), shift=lambda what, norm: np.array(inputs[norm]))


SLOW, FAST, SAME = [100, 120, 90, 110], [50, 60, 45, 130], [90, 130, 95, 100]  # FAST in three of four seeds
STILL, MOVED, FAR = [0.1] * 4, [0.2] * 4, [0.3, 0.3, 0.3, 0.1]


def recalibrated(**accuracies: tuple[float, float]) -> dict:
    """Of three seeds, by what is tested and by rate, 0.1 and 1.0. They differ by more than what is compared does."""
    names, seeds = {way.replace(" ", "_"): way for way in recalibrate.WAYS}, np.array([-9, 0, 9])
    return {
        (names[key], rate): v + seeds for key, vs in accuracies.items() for rate, v in zip((0.1, 1.0), vs, strict=True)
    }


LOSSES = recalibrated(last=(90, 80), not_measured=(89, 20), averaged_too=(90, 78), recalibrated=(80, 80))
HALF = recalibrated(last=(90, 80), not_measured=(88, 20), averaged_too=(92, 81), recalibrated=(80, 80))
NOTHING = recalibrated(last=(90, 80), not_measured=(89, 79), averaged_too=(90, 79), recalibrated=(80, 80))
NEVER = recalibrated(last=(90, 80), not_measured=(88, 70), averaged_too=(92, 78), recalibrated=(88, 71))
PARTLY = recalibrated(last=(90, 80), not_measured=(88, 70), averaged_too=(92, 78), recalibrated=(90, 78.9))
OWN = recalibrated(last=(90, 80), not_measured=(90, 80), averaged_too=(90, 80), recalibrated=(90, 91))
# The medians are equal; two of three seeds lose two points.
SHUFFLED = recalibrated(last=(90, 80), not_measured=(90, 80), averaged_too=(90, 80), recalibrated=(90, 80)) | {
    ("last", 1.0): np.array([80, 82, 71]),
    ("not measured", 1.0): np.array([78, 80, 82]),
}


def styles(instance: float, batch: float, layer: float) -> dict:
    """The worst crop with instance statistics, the best with the others."""
    worst = lambda value: np.array([0.0, value])
    best = lambda value: np.array([value, 30.0])
    return {"instance": worst(instance), "batch": best(batch), "layer": best(layer)}


WARM = np.array([2.0, 2.01, 2.04])  # a range of 0.04
WORSE, CLOSE, TINY = WARM + 0.05, WARM + 0.03, WARM[:1] + np.array([0, 0.001, 0.002])

VERDICTS = [
    # three looks in a row, one every four steps
    (steps_to, (0.9, np.array([0.5, 0.9, 0.95, 0.92, 0.1]), 4), 8),
    (steps_to, (0.9, np.array([0.9, 0.9, 0.8, 0.9, 0.9, 0.9]), 4), 16),
    (steps_to, (0.9, np.array([0.9, 0.9, 0.9]), 10), 10),
    (steps_to, (0.9, np.array([0.9, 0.9, 0.1, 0.9, 0.9]), 4), None),
    (steps_to, (0.9, np.array([0.9, 0.9]), 4), None),
    (wider, (2, 4), "yes"),
    (wider, (1, 4), "a little"),
    (wider, (1, 1), "yes"),
    (wider, (0, 4), "no"),
    (wider, (-4, 4), "no"),
    (grid_steps, ([True, True, False, True, True, True],), 2),  # a hole ends a range
    (grid_steps, ([False, True, True, False],), 1),
    (grid_steps, ([True],), 0),
    (grid_steps, ([False, False],), 0),
    (trains, ([True, True, False, True, True, True],), slice(3, 6)),
    (trains, ([True, False, True],), slice(0, 1)),
    (trains, ([False, False],), slice(0, 0)),
    (per_decade, (np.logspace(-4, 1, 21),), 4),
    (per_decade, (np.logspace(-2, 2, 5),), 1),
    (with_and_without.word, (np.array([3.0, 4.0, 5.1]),), "yes"),
    (with_and_without.word, (np.array([0.9, 3.0, 4.0]),), "yes (not in every seed)"),
    (with_and_without.word, (np.array([1.0, 2.9, 9.0]),), "less"),
    (with_and_without.word, (np.array([4.0, 5.1, INF]),), "more"),
    (with_and_without.word, (np.array([0.5, 1.09, 9.0]),), "no"),
    (with_and_without.word, (np.array([np.nan, np.nan]),), "no"),  # nobody got there
    (with_and_without.word, (np.array([np.nan, 4.0, 4.0]),), "yes (not in every seed)"),
    (with_and_without.word, (np.array([np.nan, np.nan, 4.0]),), "no"),
    (with_and_without.spread, (np.array([np.nan, 4.0, 4.0]),), "4 (4 to 4), neither gets there in 1 of 3 seeds"),
    (with_and_without.spread, (np.array([np.nan, np.nan]),), "neither gets there in 2 of 2 seeds"),
    (with_and_without.spread, (np.array([INF, 0.0, 4.0]),), "4 (0 to inf)"),
    (input_scale.mends, ({"none": 3, "none, scaled inputs": 7, "batch": 7}, "batch"), "yes"),
    (input_scale.mends, ({"none": 3, "none, scaled inputs": 7, "batch": 6}, "batch"), "a little"),
    (input_scale.mends, ({"none": 3, "none, scaled inputs": 3, "batch": 3}, "batch"), "no"),
    (very_deep.agrees, ([True, True], True), "yes"),
    (very_deep.agrees, ([True, True], False), "no"),
    (very_deep.agrees, ([True, False], False), "in part"),
    (covariate_shift.less, (np.array([1, 1, 1, 9]), np.array([2, 2, 2, 2])), True),
    (covariate_shift.less, (np.array([1, 1, 2, 9]), np.array([2, 2, 2, 2])), False),
    (
        covariate_shift.explains,
        (shifts({"none": SLOW, "batch": FAST, "noisy": FAST}, {"none": MOVED, "batch": STILL, "noisy": FAR}),),
        "no",
    ),
    (
        covariate_shift.explains,
        (shifts({"none": SLOW, "batch": FAST, "noisy": SLOW}, {"none": MOVED, "batch": STILL, "noisy": FAR}),),
        "not refuted",
    ),
    (
        covariate_shift.explains,
        (shifts({"none": SLOW, "batch": FAST, "noisy": FAST}, {"none": FAR, "batch": STILL, "noisy": MOVED}),),
        "the noise is too weak to tell",
    ),
    (
        covariate_shift.explains,
        (shifts({"none": SLOW, "batch": SAME, "noisy": FAST}, {"none": MOVED, "batch": STILL, "noisy": FAR}),),
        "batch norm is not faster here",
    ),
    (regularization.Case.against, (gap(1, 1, 1, 9), gap(2, 2, 2, 2)), "smaller"),
    (regularization.Case.against, (gap(3, 3, 3, 0), gap(2, 2, 2, 2)), "larger"),
    (regularization.Case.against, (gap(1, 1, 2, 9), gap(2, 2, 2, 2)), "equal"),
    (regularization.regularizes, ({8: "smaller", 32: "smaller"},), "yes"),
    (regularization.regularizes, ({8: "equal", 32: "smaller"},), "only in batches of 32"),
    (regularization.regularizes, ({8: "equal", 32: "larger"},), "no"),
    (regularization.acts_like, (0.3, gap(1, 1, 1, 1), gap(1, 1, 1, 9), gap(2, 2, 2, 2)), "yes, like dropout of 0.3"),
    (
        regularization.acts_like,
        (0.3, gap(2, 2, 1, 1), gap(1, 1, 1, 9), gap(2, 2, 2, 2)),
        "its gap is smaller, as that with dropout of 0.3, the nearest, is not",
    ),
    (
        regularization.acts_like,
        (0.3, gap(1.5, 1.5, 1.5, 1.5), gap(1, 1, 1, 9), gap(2, 2, 2, 2)),
        "its gap is smaller, as dropout's is, and smaller than with dropout of 0.3, the nearest",
    ),
    (regularization.nearest, ({0.0: 5.0, 0.1: 9.0, 0.2: 7.0}, 5.0), 0.2),
    (regularization.acts_like, (0.3, gap(1, 1, 1, 1), gap(1, 1, 9, 9), gap(2, 2, 2, 2)), "no"),
    (regularization.needed_less, (np.array([2, 2, 2, 0]), np.array([1, 1, 1, 1])), "yes"),
    (regularization.needed_less, (np.array([0, 0, 0, 2]), np.array([1, 1, 1, 1])), "no"),
    (regularization.needed_less, (np.array([2, 2, 1, 0]), np.array([1, 1, 1, 1])), "not measurably"),
    (memorizing.compared, ({"none": np.array([5, 5, 5, 5]), "batch": np.array([4, 4, 4, 9])},), "yes"),
    (
        memorizing.compared,
        ({"none": np.array([5, 5, 5, 5]), "batch": np.array([6, 6, 6, 1])},),
        "no, it memorizes more",
    ),
    (memorizing.compared, ({"none": np.array([5, 5, 5, 5]), "batch": np.array([4, 4, 5, 9])},), "no difference"),
    (which_norm.equals, (BEHIND, 1), ["none", "group", "layer"]),
    (which_norm.equals, (BEHIND, 32), ["batch", "group"]),
    (which_norm.larger, ({1: 40.0, 8: 1.0, 32: 0.0, 256: 0.0}, SIZES), "only against batches of 1"),
    (which_norm.larger, ({1: 40.0, 8: 4.1, 32: 0.0, 256: 3.0}, SIZES), "yes"),
    (which_norm.larger, ({1: 4.0, 4: 0.0, 8: 5.0, 32: 0.0}, [1, 4, 8, 32]), "only against batches of 1, 8"),
    (which_norm.larger, ({1: 4.0, 8: 0.0, 32: 0.0, 256: 3.0}, SIZES), "not here"),
    (which_norm.larger, ({1: 40.0, 8: 4.1, 32: 0.0, 256: 3.0}, [8, 32, 256]), "yes"),
    (which_norm.lag, (np.array([0.98, 0.90, 0.95]), np.array([0.95, 0.95, 0.92])), pytest.approx(3)),
    (which_norm.holds, ({"batch"}, BEHIND, [32, 256]), "yes; as good: group"),
    (which_norm.holds, ({"batch"}, BEHIND, [8, 32]), "yes"),
    (which_norm.holds, ({"batch"}, BEHIND, [1, 8]), "only at batch size 8; everywhere among the best: layer"),
    (which_norm.holds, ({"none"}, BEHIND, [8, 32]), "no; everywhere among the best: batch"),
    (which_norm.holds, ({"none"}, BEHIND, [1, 8, 256]), "only at batch size 1"),
    (which_norm.loses_less, ({"batch": 40, "layer": 5.0, "group": 4.1},), "it loses less than batch norm"),
    (
        which_norm.loses_less,
        ({"batch": 40, "layer": 5.0, "group": 3.9},),
        "it loses less than batch norm; group less still",
    ),
    (which_norm.loses_less, ({"batch": 5.9, "layer": 5.0, "group": 5.0},), "no"),
    (placement.exceeds, (WORSE, WARM, 0.02), True),
    (placement.exceeds, (CLOSE, WARM, 0.02), False),  # within the spread of the seeds
    (placement.exceeds, (TINY + 0.01, TINY, 0.02), False),  # below the threshold
    (placement.exceeds, (WARM, WORSE, 0.02), False),
    (placement.exceeds, (np.array([INF, INF, 2.04]), WARM, 0.02), True),  # two of three diverged
    (placement.need, ((WORSE, WARM), (WORSE, WARM)), "needs it"),
    (placement.need, ((CLOSE, WARM), (WORSE, WARM)), "needs it or another rate"),
    (placement.need, ((CLOSE, WARM), (CLOSE, WARM)), "does without"),
    (placement.answer, ({"post-norm": "needs it", "pre-norm": "does without"},), "yes"),
    (placement.answer, ({"post-norm": "needs it or another rate", "pre-norm": "does without"},), "in part"),
    (placement.answer, ({"post-norm": "needs it", "pre-norm": "needs it"},), "no"),
    (placement.answer, ({"post-norm": "does without", "pre-norm": "needs it"},), "no"),
    (placement.answer, ({"post-norm": "needs it or another rate", "pre-norm": "needs it"},), "no"),
    (placement.answer, ({"post-norm": "needs it", "pre-norm": "needs it or another rate"},), "in part"),
    (
        placement.work_well,
        ({"conv-norm-ReLU": np.array([0.1, 0.1]), "conv-ReLU-norm": np.array([0.1, 0.11])},),
        "no: conv-norm-ReLU and conv-ReLU-norm below 90%",
    ),
    (
        placement.work_well,
        ({"conv-norm-ReLU": np.array([0.89, 0.89]), "conv-ReLU-norm": np.array([0.9, 0.9])},),
        "no: conv-norm-ReLU below 90%",
    ),
    (
        placement.work_well,
        ({"conv-norm-ReLU": np.array([0.97, 0.98]), "conv-ReLU-norm": np.array([0.94, 0.98])},),
        "yes",
    ),
    (
        placement.work_well,
        ({"conv-norm-ReLU": np.array([0.97, 0.975]), "conv-ReLU-norm": np.array([0.95, 0.96])},),
        "conv-norm-ReLU is better here",
    ),
    # 0.1 is as good as the best, and the better one without warm-up; 1.0 is better still, but not as good with it
    (placement.least_sensitive, (0.3, {0.1: CLOSE, 0.3: WARM, 1.0: WORSE}, {0.1: [3], 0.3: [4], 1.0: [2]}), 0.1),
    (placement.least_sensitive, (0.3, {0.1: CLOSE, 0.3: WARM}, {0.1: [5], 0.3: [4]}), 0.3),
    (placement.better_order, (np.array([0.97, 0.975]), np.array([0.95, 0.96])), "conv-norm-ReLU"),
    (placement.better_order, (np.array([0.95, 0.955]), np.array([0.97, 0.98])), "conv-ReLU-norm"),
    (placement.better_order, (np.array([0.97, 0.98]), np.array([0.94, 0.98])), None),
    (characters.shows_future, ({"layer": np.zeros(2), "batch": np.array([0.1, 1.0])},), "yes"),
    (characters.shows_future, ({"layer": np.zeros(2), "batch": np.array([0.1, 1e-4])},), "no"),
    (
        characters.shows_future,
        ({"layer": np.array([0.0, 0.1]), "batch": np.array([0.1, 1.0])},),
        "it does, and so does layer",
    ),
    (characters.loses_at_inference, (np.array([0.01, 0.03, 0.021]),), "yes"),
    (characters.loses_at_inference, (np.array([0.01, 0.03, 0.019]),), "not here"),
    # medians of 2.0 and 2.1, but layer norm is behind in two of three seeds
    (
        characters.for_text,
        ({"layer": np.array([2.0, 2.2, 1.9]), "rms": np.array([1.9, 1.8, 2.1])},),
        "no: rms is better",
    ),
    (
        characters.for_text,
        ({"layer": np.array([2.0, 2.2, 1.9]), "batch": np.array([2.1, 2.21, 1.8]), "none": np.array([2.05, 2.3, 3])},),
        "not for its loss: batch as good",
    ),
    (gradient_growth.as_theory, (1.2230,), "yes"),
    (gradient_growth.as_theory, (1.2235,), "no"),
    (gradient_growth.as_theory, (1.1985,), "no"),
    (style.for_style, (styles(0.9, 1, 1),), "yes, where style is colour statistics"),
    (style.for_style, (styles(0.9, 0.9, 1),), "not alone"),
    (style.for_style, (styles(0.9, 1, 0.9),), "not alone"),
    (style.for_style, (styles(1, 1, 1),), "no"),
    (very_deep.steady, (np.array([0.001, 0.01, 99]),), "yes"),
    (very_deep.steady, (np.array([101, 101, 99]),), "no"),
    (very_deep.steady, (np.array([0.001, 0.009, 99]),), "no"),
    (characters.for_text, ({"layer": 2.0, "rms": 1.99, "batch": 2.1, "none": 2.2},), "yes"),
    (characters.for_text, ({"layer": 2.0, "rms": 1.9, "batch": 2.1, "none": 2.2},), "no: rms is better"),
    (
        characters.for_text,
        ({"layer": 2.0, "rms": 2.0, "batch": 2.01, "none": 2.2},),
        "not for its loss: batch as good",
    ),
    (recalibrate.loses, (LOSSES, (0.1, 1.0)), "at rate 1.0"),
    (recalibrate.loses, (HALF, (0.1, 1.0)), "yes"),
    (recalibrate.loses, (NOTHING, (0.1, 1.0)), "no"),
    (recalibrate.gives_back, (LOSSES, (0.1, 1.0)), "yes, at rate 1.0"),
    (recalibrate.gives_back, (HALF, (0.1, 1.0)), "only at rate 1.0; averaging the statistics too does"),
    (recalibrate.gives_back, (NOTHING, (0.1, 1.0)), "nothing was lost"),
    (recalibrate.gives_back, (NEVER, (0.1, 1.0)), "no"),
    (recalibrate.gives_back, (PARTLY, (0.1, 1.0)), "only at rate 0.1; a part of it at rate 1.0"),
    (recalibrate.loses, (OWN, (0.1, 1.0)), "at rate 1.0"),
    (recalibrate.gives_back, (OWN, (0.1, 1.0)), "yes, at rate 1.0"),
    (recalibrate.loses, (SHUFFLED, (0.1, 1.0)), "at rate 1.0"),
    (after_training.still_standard, (90.0,), "yes"),
    (after_training.still_standard, (9.0,), "at first; after training no"),
    (after_training.still_standard, (67.2,), "for 67 % of the features"),
    (after_training.is_used, (np.array([5.0, 6.0]), np.array([4.0, 5.0])), "they could, and some do"),
    (after_training.is_used, (np.array([5.0, 5.0]), np.array([4.0, 5.0])), "they could, and do not"),
    (
        after_training.better_running,
        ({"running": 98, "batches of 2": 50, "batches of 10": 96.9, "batches of 60": 97.5},),
        "yes, they are better than batches of 2, batches of 10",
    ),
    (
        after_training.better_running,
        ({"running": 98, "batches of 2": 98, "batches of 10": 99, "batches of 60": 97},),
        "no difference here",
    ),
    (
        after_training.better_running,
        ({"running": 50, "batches of 2": 98, "batches of 10": 99, "batches of 60": 50},),
        "no, they are worse than batches of 2, batches of 10",
    ),
    (
        after_training.better_running,
        ({"running": 90, "batches of 2": 50, "batches of 10": 99, "batches of 60": 90},),
        "they are better than batches of 2, worse than batches of 10",
    ),
    # equal medians, better in two of three seeds
    (
        after_training.better_running,
        ({way: np.array([8, 12, 10] if way == "running" else [5, 10, 12]) for way in after_training.WAYS},),
        "yes, they are better than batches of 2, batches of 10, batches of 60",
    ),
    (
        after_training.any_does,
        ({1e-8: 97.1, 1e-5: 98.0, 1e-3: 98.5, 10: 96.0},),
        "yes: 1e-08, 1e-05, 0.001 will, 10 will not",
    ),
    (after_training.any_does, ({1e-8: 96.9, 1e-5: 98.0, 10: 97.0},), "no: 1e-05, 10 will, 1e-08 will not"),
    # medians of the strategy, then of networks without norms
    (_faster, ([200, INF, 400], [10, INF, 5]), "no, 2.0 times fewer steps, 2.0 times more time"),
    (_faster, ([200, 100, 400], [10, 30, 25]), "yes, 2.0 times more steps, 2.5 times less time"),
    (_faster, ([200, INF, INF], [10, INF, INF]), "yes: without norms it is not reached at all"),
    (_faster, ([INF, 100, 200], [INF, 10, 20]), "not reached in these epochs"),
]


@pytest.mark.parametrize(
    ("rule", "found", "expected"),
    VERDICTS,
    ids=[f"{i}-{rule.__module__}.{rule.__name__}-{expected}" for i, (rule, _, expected) in enumerate(VERDICTS)],
)
def test_verdict(rule, found, expected):
    assert rule(*found) == expected


# -- what verdicts are given on ---------------------------------------------------------------------------------------


def undoing(rng, epsilon: float, width: int = 12):
    """A layer whose scale and bias take back what its norm does to these images, one to come after it, the images."""
    x = rng.normal(3, 2, (200, width)).astype(np.float32)
    kernel = rng.normal(1, 1, (width, width)).astype(np.float32)
    h = x @ kernel
    layer = {"kernel": kernel, "scale": np.sqrt(h.var(0) + epsilon), "bias": h.mean(0)}
    layer = {name: jnp.asarray(value) for name, value in layer.items()}
    return layer, SimpleNamespace(x=jnp.asarray(x))


@pytest.mark.parametrize("epsilon", [1e-5, 10.0])
@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda layer: layer, 1.0),
        (lambda layer: layer | {"scale": 1.09 * layer["scale"]}, 1.0),
        (lambda layer: layer | {"scale": 1.11 * layer["scale"]}, 0.0),
        (lambda layer: layer | {"scale": 0.89 * layer["scale"]}, 0.0),
        (lambda layer: layer | {"scale": -layer["scale"]}, 0.0),
        (lambda layer: layer | {"bias": layer["bias"] + 0.09 * layer["scale"]}, 1.0),
        (lambda layer: layer | {"bias": layer["bias"] - 0.11 * layer["scale"]}, 0.0),
        (lambda layer: layer | {"bias": layer["bias"].at[:3].add(layer["scale"][:3])}, 0.75),
        (lambda layer: layer | {"scale": jnp.ones(12), "bias": jnp.zeros(12)}, 0.0),
    ],
)
def test_undone_is_the_share_of_features_that_come_out_as_they_went_in(rng, epsilon, change, share):
    layer, data = undoing(rng, epsilon)
    assert after_training.undone([change(layer), "the last layer"], data, epsilon) == pytest.approx(share)


def test_a_norm_that_is_undone_changes_nothing_and_not_by_chance(rng):
    layer, data = undoing(rng, 1e-5)
    ((_, _, after),) = after_training.outputs([layer, "the last layer"], data, 1e-5)
    np.testing.assert_allclose(after, data.x @ layer["kernel"], rtol=1e-4, atol=1e-4)
    dealt = after_training.undone([layer, "the last layer"], data, 1e-5, np.random.default_rng(0))
    assert dealt < 0.5  # with each other's scales and biases


def test_memorizing_stops_where_validation_images_say():
    curves = {"valid": np.array([[1, 9, 9], [5, 4, 3]]), "accuracy": np.array([[3, 4, 8], [1, 2, 9]])}
    assert memorizing.at_best_epoch(curves, "accuracy").tolist() == [4, 1]


@pytest.fixture
def record(tmp_path) -> Record:
    return Record("mine", Namespace(output=tmp_path), lambda: None)


def test_the_best_setting_is_chosen_by_one_column_among_the_rows_asked_for(record):
    for norm, rate, valid in [
        ("batch", 0.1, (3, 4, 9)),
        ("batch", 0.3, (5, 5, 1)),
        ("batch", 1.0, (5, 5, 2)),
        ("none", 3.0, (9, 9, 9)),
    ]:
        record.rows.extend({"norm": norm, "rate": rate, "valid": value, "accuracy": -value} for value in valid)
    assert record.best("rate", "valid", norm="batch") == 0.3  # of equals the least
    assert record.best("rate", "valid", score=np.min, norm="batch") == 0.1
    assert record.best("rate", "accuracy", norm="batch") == 0.1
    assert record.best("rate", "valid") == 3.0


# -- choices: 0.1 is better on validation images, 1.0 on test images --------------------------------------------------

FLATTERED = {0.1: {"valid": 0.95, "accuracy": 0.85}, 1.0: {"valid": 0.93, "accuracy": 0.97}}
RATES = np.array([*FLATTERED])


def flatter(record: Record, *cases: dict, loss: bool = False) -> None:
    for case in cases:
        for rate, scores in FLATTERED.items():
            values = {"valid": 1 - scores["valid"], "loss": 1 - scores["accuracy"]} if loss else scores
            record.rows.extend(case | values | {"rate": rate, "seed": seed} for seed in (0, 1))


@pytest.mark.parametrize(
    ("found", "case"),
    [
        (lambda r: which_norm.at_best_rate(r, "batch", 4), {"norm": "batch", "batch_size": 4}),
        (
            lambda r: very_deep.scores(r, "batch", "plain", 10),
            {"part": "training", "norm": "batch", "kind": "plain", "depth": 10},
        ),
        (lambda r: placement.at_best(r, "accuracy", 1, order="any")[1], {"order": "any"}),
    ],
    ids=["which_norm", "very_deep", "placement"],
)
def test_reported_is_the_test_accuracy_at_the_rate_that_validation_images_choose(record, found, case):
    flatter(record, case)
    assert found(record).tolist() == [0.85, 0.85]


def test_reported_is_the_loss_at_the_rate_that_validation_text_chooses(record):
    flatter(record, {"place": "any"}, loss=True)
    rate, losses = placement.at_best(record, "loss", -1, place="any")
    assert rate == 0.1
    np.testing.assert_allclose(losses, 0.15)
    record.rows.clear()
    flatter(record, *({"norm": norm, "train_mode": 1.0, "leak": 0.0} for norm in characters.NORMS), loss=True)
    characters.report(record, list(RATES), 3.0)
    assert [row[1:3] for row in record.content["tables"][0]["rows"][:-1]] == [["0.1", "0.15 (0.15 to 0.15)"]] * 4


def test_with_and_without_nobody_gets_there(record):
    """Neither network in one seed, neither of all: no speed, and no infinite one."""
    for norm in with_and_without.NORMS:
        record.rows.append({"network": "relu", "norm": norm, "width": 100, "seconds": 1e-3})
        for seed in (0, 1, with_and_without.TUNING):
            curve = {"rate": 0.1, "steps": None, "accuracy": [0.1, 0.2]}
            record.rows.append({"network": "relu", "norm": norm, "seed": seed} | curve)
    found = with_and_without.Findings(record, [0.1], with_and_without.TUNING)
    with_and_without.report(record, found, [("relu", "none")], (100,))
    for claim in record.content["claims"][:2]:
        assert claim["verdict"] == "relu: no in steps, no in seconds"
        assert claim["measured"].endswith(", ".join(["neither gets there in 2 of 2 seeds"] * 2))


def test_regularization_chooses_its_dropout_on_other_seeds_and_never_none(record):
    """With batch norm the gap is 10 points, without 20: reported at a dropout of 0.5, in tuning at one of 0.1."""
    gaps = {("batch", 0.0): (10, 10), ("none", 0.0): (10, 20), ("none", 0.1): (11, 13), ("none", 0.5): (17, 10)}
    gaps |= {("batch", 0.1): (9, 9), ("batch", 0.5): (9, 9)}
    dropped = {}
    for (norm, drop), (tuning, reported) in gaps.items():
        for rate in regularization.RATES:
            for seed in (0, 1, 2, 3, 1000, 1001):
                accuracy = 1 - (tuning if seed >= 1000 else reported) / 100
                row = {"seed": seed, "rate": rate, "norm": norm, "drop": drop, "loss": 1.0, "train_loss": 0.0}
                record.rows.append(row | {"accuracy": accuracy, "train_accuracy": 1.0})
        dropped[norm, drop] = regularization.Case(record, 1000, norm=norm, drop=drop)
    regularization.claim_dropout(record, dropped, (0.0, 0.1, 0.5))
    verdict = record.content["claims"][0]["verdict"]
    assert verdict == "its gap is smaller, as dropout's is, and smaller than with dropout of 0.1, the nearest"


def test_learning_rates_reports_the_rate_that_validation_images_choose(record):
    flatter(record, *({"norm": norm} for norm in learning_rates.NORMS))
    learning_rates.report(record, RATES)
    assert [row[1:] for row in record.content["tables"][0]["rows"]] == [["1 to 1", "0", "0.1", "85.0%"]] * 3


def test_init_scale_reports_the_rate_that_validation_images_choose(record):
    scales = np.logspace(-2, 2, 3)
    flatter(record, *({"norm": norm, "scale": scale} for norm in ("none", "batch") for scale in scales))
    init_scale.report(record, ("none", "batch"), scales, RATES)
    rows = record.content["tables"][0]["rows"]
    assert [row[1:] for row in rows] == [["0.1", "none", "0"], ["tuned", "none", "0"]] * 2


def test_input_scale_reports_the_rate_that_validation_images_choose(record):
    networks = list(input_scale.NETWORKS)
    sizes = [("all alike", 1.0)] + [("apart", float(decades)) for decades in input_scale.DECADES[1:]]
    flatter(record, *({"network": n, "how": how, "size": size} for n in networks for how, size in sizes))
    input_scale.report(record, networks, np.ones(1))
    assert [row[1:] for row in record.content["tables"][0]["rows"]] == [["none", *["85.0% (85.0%)"] * 4]] * 5
