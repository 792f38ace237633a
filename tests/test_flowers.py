"""The flower challenge: its images, its loader, its verdicts, and that it runs."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.linear_model import LogisticRegression

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from flower_folders import photographs  # noqa: E402
from flower_images import SPECIES, flowers  # noqa: E402
from flower_report import (  # noqa: E402
    NONE,
    _faster,
    calmer,
    helps,
    matters,
    more_converge,
    same,
    stable,
    usable,
    what_mattered,
)
from flowers import RATES, STRATEGY, TRIED, at, beside, beyond, load, reached, spike, sweep  # noqa: E402
from test_examples import run  # noqa: E402

# -- generated images -------------------------------------------------------------------------------------------------


def test_flowers_are_decided_by_the_seed():
    images, labels = flowers(3, 700)  # more than one chunk
    again, same_labels = flowers(3, 700)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, same_labels)
    assert images.shape == (700, 24, 24, 3)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert np.bincount(labels).tolist() == [70] * len(SPECIES)
    assert np.abs(flowers(4, 700)[0] - images).mean() > 0.05
    assert len(np.unique(images.round(3), axis=0)) == 700  # chunks do not repeat each other


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # stopped early, which helps it
def test_color_and_light_do_not_tell_species():
    """Whatever a linear model sees is shape, and it cannot use that either."""
    (x, y), (x_test, y_test) = flowers(0, 1500), flowers(1, 500)
    colors = LogisticRegression(max_iter=300).fit(x.mean((1, 2)), y)
    assert colors.score(x_test.mean((1, 2)), y_test) < 0.25
    pixels = LogisticRegression(max_iter=15).fit(x.reshape(len(x), -1), y)
    assert pixels.score(x_test.reshape(len(x_test), -1), y_test) < 0.5


def test_size_changes_nothing_but_the_pixels():
    """One chunk has the same random numbers up to its noise, which comes last."""
    small, labels = flowers(0, 100, 16)
    large, same = flowers(0, 100, 48)
    np.testing.assert_array_equal(labels, same)
    shrunk = large.reshape(100, 16, 3, 16, 3, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 0.05
    assert np.abs(shrunk[1:] - small[:-1]).mean() > 0.15


# -- photographs ------------------------------------------------------------------------------------------------------


def photograph(path: Path, color: tuple[int, int, int], size=(40, 30)) -> None:
    """A frame of black at the long ends, which the square cut takes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    image.paste(color, ((size[0] - size[1]) // 2, 0, (size[0] + size[1]) // 2, size[1]))
    image.save(path, quality=95)


COLORS = [(200, 20, 20), (20, 200, 20), (20, 20, 200)]


@pytest.fixture
def classes(tmp_path) -> Path:
    for name, color, count in (("rose", COLORS[0], 10), ("daisy", COLORS[1], 2), ("aster", COLORS[2], 4)):
        for i in range(count):
            photograph(tmp_path / "flowers" / name / f"{i}.JPG", color)
    (tmp_path / "flowers" / "rose" / "notes.txt").write_text("not an image")
    (tmp_path / "flowers" / ".cache").mkdir()
    return tmp_path / "flowers"


@pytest.fixture
def oxford(tmp_path) -> Path:
    """Image 1 is of class 1, images 2 to 4 of class 7, and so on; the large part is tstid."""
    folder, labels = tmp_path / "oxford", np.array([1, 7, 7, 7, 1, 1, 7, 1])
    for number, label in enumerate(labels, 1):
        photograph(folder / "jpg" / f"image_{number:05d}.jpg", COLORS[0 if label == 1 else 1])
    savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    savemat(folder / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[8, 3, 4, 5, 6, 7]]})
    return folder


def check_colors(x, y, colors):
    inside = x[:, 1:-1, 1:-1]  # JPEG mixes colours at the frame
    expected = np.broadcast_to(np.array(colors)[y][:, None, None] / 255, inside.shape)
    np.testing.assert_allclose(inside, expected, atol=0.05)


def test_class_folders(classes):
    x, y, x_test, y_test, names = photographs(classes, 8, seed=0)
    assert names == ["aster", "daisy", "rose"]
    assert x.shape[1:] == (8, 8, 3)
    assert x.dtype == np.float32
    assert np.bincount(y).tolist() == [3, 1, 8]
    assert np.bincount(y_test).tolist() == [1, 1, 2]
    check_colors(x, y, [COLORS[2], COLORS[1], COLORS[0]])
    check_colors(x_test, y_test, [COLORS[2], COLORS[1], COLORS[0]])


def test_oxford_layout_learns_from_the_large_part(oxford):
    x, y, x_test, y_test, names = photographs(oxford, 8, seed=0)
    assert names == ["class 1", "class 7"]
    assert y.tolist() == [0, 1, 1, 0, 0, 1]
    assert y_test.tolist() == [0, 1]
    check_colors(x, y, COLORS[:2])
    check_colors(x_test, y_test, COLORS[:2])


def lonely(folder):
    photograph(folder / "tulip" / "only.jpg", (1, 2, 3))
    return "two images of a class.*got 1 in .*tulip"


def scribbled(folder):
    (folder / "aster" / "2.JPG").write_bytes(b"no picture")
    return "must be readable; .*aster/2.JPG is not"


def halved(folder):
    path = folder / "rose" / "3.JPG"
    path.write_bytes(path.read_bytes()[:300])
    return "must be readable; .*rose/3.JPG is not"


def spoiled(folder):
    """A chunk of a PNG that says how long it is, and is not."""
    path = folder / "rose" / "spoiled.png"
    photograph(path, COLORS[0])
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT")
    content[place - 4 : place] = (3).to_bytes(4, "big")
    path.write_bytes(content)
    return "must be readable; .*rose/spoiled.png is not"


def test_photographs_are_turned_as_their_camera_says(tmp_path):
    """Left half black, right half white; turned by a quarter of a circle to the right, black is above."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("rose", "daisy"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image = Image.new("RGB", (32, 32))
            image.paste((255, 255, 255), (16, 0, 32, 32))
            image.save(tmp_path / name / f"{i}.jpg", exif=exif, quality=95)
    x, *_ = photographs(tmp_path, 8, seed=0)
    np.testing.assert_allclose(x[:, :3], 0, atol=0.05)
    np.testing.assert_allclose(x[:, -3:], 1, atol=0.05)


@pytest.mark.parametrize("damage", [lonely, scribbled, halved, spoiled])
def test_errors_of_class_folders(classes, damage):
    message = damage(classes)
    with pytest.raises(ValueError, match=message):
        photographs(classes, 8, seed=0)


def without_labels(folder):
    (folder / "imagelabels.mat").unlink()
    return "imagelabels.mat is missing"


def without_an_image(folder):
    (folder / "jpg" / "image_00004.jpg").unlink()
    return "must be readable; .*image_00004.jpg is not"


def with_a_broken_split(folder):
    (folder / "setid.mat").write_bytes(b"MATLAB?")
    return "setid.mat must be a MATLAB file that holds `tstid`"


def with_a_part_missing(folder):
    savemat(folder / "setid.mat", {"tstid": [[3, 4, 5]], "trnid": [[1, 2]]})
    return "setid.mat must be a MATLAB file that holds `valid`"


def with_a_number_too_large(folder):
    savemat(folder / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[3, 9, 5]]})
    return "from 1 to 8, the labels in .*imagelabels.mat; got 9 in .*setid.mat"


def with_an_untested_class(folder):
    savemat(folder / "setid.mat", {"trnid": [[2]], "valid": [[3]], "tstid": [[1, 4, 5]]})
    return "class 1 has no image to test in .*setid.mat"


@pytest.mark.parametrize(
    "damage",
    [
        without_labels,
        without_an_image,
        with_a_broken_split,
        with_a_part_missing,
        with_a_number_too_large,
        with_an_untested_class,
    ],
)
def test_errors_of_the_oxford_layout(oxford, damage):
    message = damage(oxford)
    with pytest.raises(ValueError, match=message):
        photographs(oxford, 8, seed=0)


def test_a_missing_folder_and_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder of photographs; got .*nowhere"):
        photographs(tmp_path / "nowhere", 8, seed=0)
    with pytest.raises(ValueError, match=f"got 0 folders in {tmp_path}"):
        photographs(tmp_path, 8, seed=0)


# -- the program ------------------------------------------------------------------------------------------------------


def test_when_the_target_is_reached():
    assert reached([10, 20, 30], [0.5, 0.9, 1.0]) == pytest.approx(25)
    assert reached([10, 20, 30], [0.5, 0.96, 0.9]) == pytest.approx(10 + 10 * 45 / 46)
    assert reached([10, 20], [0.96, 0.97]) == 10
    assert reached([10, 20], [0.5, 0.94]) is None


def test_a_spike_is_measured_against_the_batches_before_it():
    losses = [2.0] * 25 + [1.0] * 25
    assert spike([*losses, 4.0]) == pytest.approx(3)
    assert spike([*losses[:25], 6.0]) == pytest.approx(4)
    assert spike([9.0] * 5) == 0
    assert spike([*losses, np.nan]) is None


def test_a_choice_matters_if_all_seeds_agree_beyond_the_noise():
    assert helps(np.array([2.0, 3.0, 4.0]), 1.0) == 1
    assert helps(np.array([-2.0, -3.0, -np.inf]), 1.0) == -1
    assert helps(np.array([2.0, 3.0, -0.1]), 1.0) == 0  # one seed disagrees
    assert helps(np.array([0.5, 0.6, 4.0]), 1.0) == 0  # within the noise
    assert helps(None, 0.0) == 0


def row(steps: float | None, accuracy: float) -> dict:
    return {"steps_to_target": steps, "final": accuracy}


@pytest.mark.parametrize(
    ("rows", "level", "tried"),
    [
        # the best in the middle, both ends of no use
        ({0.03: row(None, 0.5), 0.3: row(200, 0.96)}, 0.9, TRIED),
        # the highest is the best, and so is the next; the one after is not
        ({3.0: row(200, 0.96), 10.0: row(190, 0.95)}, 1.0, (*TRIED, 10.0, 30.0)),
        # fewer steps are better than more accuracy
        ({0.03: row(300, 0.99), 3.0: row(200, 0.96)}, 2.0, (*TRIED, 10.0)),
        # the lowest is usable, and is not the best
        ({0.03: row(None, 0.9), 0.01: row(None, 0.8), 0.3: row(200, 0.96)}, 0.9, (*TRIED, 0.01)),
        # everything is as good as anything: to both ends of the list, and no further
        (dict.fromkeys(RATES, row(None, 0.1)), 1.0, (*TRIED, 0.01, 0.003, 10.0, 30.0)),
    ],
)
def test_rates_go_on_beyond_an_end_that_is_best_or_usable(rows, level, tried):
    record, ran = Namespace(rows=[]), []

    def choose(choices, epochs, seed, part):
        ran.append(choices.rate)
        record.rows.append(rows.get(choices.rate, row(None, 0.1)))

    sweep(record, choose, STRATEGY, RATES, TRIED, level=level, epochs=2, seed=0, part="sweep")
    assert ran == list(tried)


def test_both_ways_without_norms_try_the_same_rates_as_the_strategy():
    adam = STRATEGY._replace(optimizer="adam")
    assert [at(rate, adam).rate for rate in TRIED] == [rate / 100 for rate in TRIED]
    assert beside(at(0.3, adam), RATES) == (0.1, 0.3, 1.0)
    assert beside(at(RATES[0], STRATEGY), RATES) == RATES[:2]
    assert beside(at(RATES[-1], STRATEGY), RATES) == RATES[-2:]
    assert beyond((1.0,), {1.0: (0, 0.5)}, 0.9) == []


INF = np.inf
FOUR, THREE = np.array([200.0, 200, 200, 200]), np.array([400.0, 400, 400])

VERDICTS = [
    (usable, ([0.1, 0.3, 1.0, 3.0], [0.8, 0.9, 1.0, 0.95]), [0.3, 1.0, 3.0]),
    (usable, ([0.1, 0.3, 1.0, 3.0], [0.95, 0.3, 1.0, 0.2]), [1.0]),  # not beyond the hole
    (usable, ([0.1, 0.3, 1.0, 3.0], [1.0, 0.95, 0.3, 0.95]), [0.1, 0.3]),
    (more_converge, ([1, 1, 1, INF], [1, 1, INF, INF]), True),
    (more_converge, ([1, 1, 1, 1, 1], [1, 1, 1, 1, INF]), False),
    (calmer, ([1, 1, 1, 9], [2, 2, 2, 2]), True),
    (calmer, ([1, 3, 3, 3], [2, 2, 2, 9]), False),  # the largest is not all
    (calmer, ([1, 1, 1, INF], [INF, INF, INF, INF]), True),
    (stable, {"a": True, "b": True}, "yes"),
    (stable, {"a": True, "b": False, "c": True}, "in a, c; not in b"),
    (stable, {"a": False, "b": False}, "no"),
    # the first three seeds are compared with the same three, not with all
    (_faster, ([[100, 100, 100, 400, 400, 400, 400], THREE], [[1, 1, 1, 9, 9, 9, 9], [2, 2, 2]]),
     "yes, 4.0 times fewer steps, 2.0 times less time"),
    (_faster, ([FOUR, 2 * FOUR], [FOUR, 1.01 * FOUR]), "no difference: 2.0 times fewer steps, 1.0 times less time"),
    (_faster, ([FOUR, 2 * FOUR], [FOUR, 1.09 * FOUR]), "no difference: 2.0 times fewer steps, 1.1 times less time"),
    (_faster, ([FOUR, FOUR], [FOUR, FOUR / 1.2]), "no, 1.0 times fewer steps, 1.2 times more time"),
    (_faster, ([FOUR, [300, INF, INF, INF]], [FOUR, [300, INF, INF, INF]]),
     "yes: without norms most of the seeds compared do not reach it"),
    (_faster, ([[INF, INF, 1, 1, 1], [2, 2, 2]], [[INF, INF, 1, 1, 1], [2, 2, 2]]),
     "no: with them most of the seeds compared do not reach it"),
    (_faster, ([[INF, 1, 1], [INF, INF, 2]], [[INF, 1, 1], [INF, INF, 2]]),
     "yes, 2.0 times fewer steps, 2.0 times less time"),
    (matters, (1, 0), "yes: more accurate"),
    (matters, (1, 1), "yes: more accurate and faster"),
    (matters, (1, -1), "both: more accurate and slower"),
    (matters, (0, -1), "no: slower"),
    (matters, (0, 0), NONE),
    (same, (0, 0.8, 0.9), "the same answers, faster"),
    (same, (1, 0.8, 1.1), "not the same answers, no faster here"),
    (same, (0, 1.1, 1.2), "the same answers, slower"),
    (what_mattered, {"a (not b)": "yes: faster", "c (not d)": NONE, "e (not f)": "no: slower"},
     "what mattered: a (not b); better without: e (not f)"),
    (what_mattered, {"a (not b)": "yes: faster", "a (not b, at 0.3 of the rate)": NONE},
     "what mattered: a, for the higher rate it allows"),
    (what_mattered, {"a (not b)": NONE}, "what mattered: none of the choices"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "found", "expected"), VERDICTS, ids=[f"{i}-{rule.__name__}" for i, (rule, *_) in enumerate(VERDICTS)]
)
def test_verdict(rule, found, expected):
    arguments = (
        [found]
        if isinstance(found, dict)
        else [np.array(f) if isinstance(f, list) and rule is not _faster else f for f in found]
    )
    assert np.array_equal(rule(*arguments), expected)


@pytest.mark.full  # trains for seconds: CI runs it
def test_quick_run_leaves_rows_tables_claims_and_picture(tmp_path):
    out = run("flowers.py", "--quick", "--seed", "5", cwd=tmp_path)
    assert "verdict" in out
    folder = tmp_path / "runs/flowers"
    assert (folder / "flowers.png").stat().st_size > 50_000
    results = json.loads((folder / "results.json").read_text())
    rows = results["rows"]
    select = lambda **where: [r for r in rows if all(r.get(k) == v for k, v in where.items())]
    assert len({(r["name"], r["rate"]) for r in select(part="sweep")}) == 9
    for name in ("strategy", "no norms"):
        assert [r["seed"] for r in select(part="main", name=name)] == [5, 6]
    for name in ("no norms", "no norms, Adam"):  # rates beside the best one, with twice the epochs
        best = max(select(part="sweep", name=name), key=lambda row: row["final"])["rate"]
        longer = [r["rate"] for r in select(part="longer sweep", name=name)]
        assert best in longer
        assert len(longer) in (2, 3)
    for name in ("strategy", "no norms"):  # the same training of the same seed, chosen by images and reported by others
        (reported,) = select(part="main", name=name, seed=5)
        (choosing,) = select(part="sweep", seed=5, **{key: reported[key] for key in ("order", "optimizer", "rate")})
        assert choosing["accuracy"] != reported["accuracy"]
    assert [r["seed"] for r in select(part="longer")] == [5, 6]
    assert len(select(part="ablation")) == 5 * 2
    assert len(results["tables"]) == 3
    assert len(results["claims"]) == 2 + 1 + 5 + 3 + 1
    assert all(claim["verdict"] and claim["measured"] for claim in results["claims"])
    # Momentum changes the averages: after ten steps, 0.999 still has initial values. Without norms there are none.
    averages = select(part="main", name="strategy")[0]["averages"]
    assert set(averages) == {"recalibrated", "0.9", "0.99", "0.999"}
    assert len(set(averages.values())) > 1
    assert all(r["averages"] == {} for r in rows if r["order"] == "none")
    # Without norms the folded network answers alike.
    folds = [r["folded"] for r in select(part="main", name="strategy")]
    assert all(fold["gap"] < 1e-5 and fold["answers"] == 0 for fold in folds)


def test_an_error_is_one_line(tmp_path):
    out = run("flowers.py", "--data", "nowhere", cwd=tmp_path, code=1)
    assert out.strip() == "flowers: --data must be a folder of photographs; got nowhere, which is no folder."


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 63}, "--images must be at least 64, one batch; got 63"),
        ({"size": 4}, "--size must be at least 8.*got 4"),
        ({"epochs": 0}, "--epochs must be at least 1; got 0"),
    ],
)
def test_errors_of_options(wrong, message):
    options = {"data": None, "size": None, "images": 640, "epochs": 1, "seed": 0, "quick": False}
    with pytest.raises(ValueError, match=message):
        load(Namespace(**(options | wrong)))


def test_load_needs_a_batch_of_photographs(classes):
    options = Namespace(data=classes, size=None, epochs=2, seed=0)
    with pytest.raises(
        ValueError, match=r"64 images to learn from, one batch; got 11 in .*flowers, and 1 for validation"
    ):
        load(options)
    for i in range(76):
        photograph(classes / "aster" / f"more{i}.png", COLORS[2])
    data, names = load(options)
    # Of 80 asters, 2 daisies and 10 roses a fifth is for testing; of the 73 others a tenth for choosing.
    assert data.x.shape == (64 + 1 + 8 - 7, 64, 64, 3)
    assert np.sort(np.concatenate([data.y, data.y_valid])).tolist() == [0] * 64 + [1] + [2] * 8
    assert data.for_choosing().x_test is data.x_valid
    assert data.for_choosing().y_test is data.y_valid
    assert len(names) == 3


def test_generated_images_for_choosing_are_others():
    options = Namespace(data=None, size=8, images=640, epochs=1, seed=5, quick=True)
    data, _ = load(options)
    assert data.x_valid.shape == data.x_test.shape == (200, 8, 8, 3)
    every = np.concatenate([data.x, data.x_test, data.x_valid])
    assert len(np.unique(every.round(3), axis=0)) == 640 + 2 * 200
