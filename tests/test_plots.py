"""Pictures show the numbers they were given; the page's data are those numbers; sharing is what the norms really do."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from cases import CASES
from histories import NASTY, grown

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxnorm as jn
from jaxnorm.inspect import History, percentiles, summarize
from jaxnorm.plots import (
    distribution_page,
    plot_histograms,
    plot_percentiles,
    plot_scalars,
    sharing_picture,
    sharing_sets,
)

LAYERS = ("hidden 1", "hidden 2", "logits")
HISTORY = grown(LAYERS, steps=range(0, 60, 5), widening=0.1, running="hidden 1")
ROOT = Path(__file__).parent.parent


def per_feature() -> History:
    history = History()
    history.record(0, {"hidden 1": summarize(jnp.ones((5, 3)), axis=0)})
    return history


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")  # what examples in docstrings leave open
    yield
    plt.close("all")


def data(path: Path) -> dict:
    """What a browser parses."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


# ---- still pictures --------------------------------------------------------------------------------------------------


def test_percentiles_are_drawn_as_median_and_band():
    ax = plot_percentiles(HISTORY, ["hidden 2", "logits"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["hidden 2", "logits"]
    for name, line, band in zip(("hidden 2", "logits"), ax.lines, ax.collections, strict=True):
        low, middle, high = percentiles(HISTORY[name], (15, 50, 85), HISTORY.edges)
        np.testing.assert_array_equal(line.get_xdata(), HISTORY.steps)
        np.testing.assert_array_equal(line.get_ydata(), middle)
        (corners,) = (path.vertices for path in band.get_paths())
        for edge in (low, high):
            assert {*zip(HISTORY.steps.tolist(), np.asarray(edge).tolist(), strict=True)} <= {
                *map(tuple, corners.tolist())
            }


@pytest.mark.parametrize(("steps", "drawn"), [([10, 0], [10, 0]), (None, [0, 15, 30, 40, 55])])
def test_histograms_are_drawn_at_their_steps(steps, drawn):
    ax = plot_histograms(HISTORY, "logits", steps)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"step {step}" for step in drawn]
    for step, patch in zip(drawn, ax.patches, strict=True):
        counts, edges, _ = patch.get_data()
        np.testing.assert_array_equal(counts, HISTORY["logits"].histogram[HISTORY.steps.tolist().index(step)])
        np.testing.assert_array_equal(edges, HISTORY.edges)


def test_scalars_are_drawn_over_their_steps():
    ax = plot_scalars(HISTORY)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata().T, [HISTORY.steps, HISTORY.scalars["hidden 1/running mean"]])
    assert line.get_label() == "hidden 1/running mean"


@pytest.mark.parametrize(
    "plot", [plot_percentiles, lambda h, ax=None: plot_histograms(h, "logits", ax=ax), plot_scalars]
)
def test_pictures_use_the_axes_they_are_given(plot):
    _, (left, right) = plt.subplots(1, 2)
    assert plot(HISTORY, ax=left) is left
    assert plot(HISTORY) is right  # the current ones


PICTURE_ERRORS = [
    (lambda: plot_percentiles(HISTORY, ["hidden 3"]), ValueError, "plot_percentiles: `names` must be recorded in the history; got 'hidden 3'. Recorded: hidden 1, hidden 2, logits."),
    (lambda: plot_percentiles(HISTORY, "logits"), TypeError, "plot_percentiles: `names` must be a list of names; got 'logits'. Write ['logits']."),
    (lambda: plot_percentiles(History()), ValueError, "plot_percentiles: a history must not be empty; got nothing to draw. Record something first."),
    (lambda: plot_histograms(HISTORY, "conv"), ValueError, "plot_histograms: `name` must be recorded in the history; got 'conv'. Recorded: hidden 1, hidden 2, logits."),
    (lambda: plot_histograms(HISTORY, "logits", [3]), ValueError, "plot_histograms: `steps` must be recorded in the history; got 3. Recorded: 0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55."),
    (lambda: plot_percentiles(per_feature()), ValueError, "plot_percentiles: summaries must be of whole layers; got a histogram of shape (1, 3, 256) for 'hidden 1'. Summarize with axis=None."),
    (lambda: plot_histograms(per_feature(), "hidden 1"), ValueError, "plot_histograms: summaries must be of whole layers; got a histogram of shape (1, 3, 256) for 'hidden 1'. Summarize with axis=None."),
    (lambda: plot_scalars(HISTORY, ["loss"]), ValueError, "plot_scalars: `names` must be recorded in the history; got 'loss'. Recorded: hidden 1/running mean."),
    (lambda: plot_scalars(grown(LAYERS, [0])), ValueError, "plot_scalars: a history must not be empty; got nothing to draw. Record something first."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PICTURE_ERRORS)
def test_pictures_say_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()
    assert not plt.get_fignums()  # before anything is drawn


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_pages_data_are_the_historys_numbers(tmp_path):
    short = grown(LAYERS[:2], steps=[5, 7], seed=3, broken_at=7)
    distribution_page({"long": HISTORY, "short": short}, tmp_path / "page.html", step_name="epoch")
    page = data(tmp_path / "page.html")
    assert page["steps"] == sorted({*HISTORY.steps.tolist(), 5, 7})
    assert page["layers"] == list(LAYERS)
    assert [history["name"] for history in page["histories"]] == ["long", "short"]
    assert page["histories"][1]["layers"][2] is None
    for history, shown in zip((HISTORY, short), page["histories"], strict=True):
        assert shown["steps"] == history.steps.tolist()
        np.testing.assert_array_equal(shown["edges"], history.edges)
        for name, layer in zip(history.names, shown["layers"], strict=False):
            summary = history[name]
            assert all(type(count) is int for row in layer["histogram"] for count in row)
            np.testing.assert_array_equal(layer["histogram"], summary.histogram)
            numbers = dict(layer["statistics"])
            for key, line in (("mean", summary.mean), ("standard deviation", summary.std)):
                np.testing.assert_array_equal(np.array(numbers[key], float), line)  # None becomes NaN
            for key, line in (
                ("dead", summary.dead),
                ("saturated", summary.saturated),
                ("not finite", summary.nonfinite),
            ):
                np.testing.assert_array_equal(np.array(layer["shares"][key], float), line)
            expected = percentiles(summary, (15, 50, 85), history.edges)
            np.testing.assert_array_equal(np.array(layer["percentiles"], float), expected)
    beside = [[key for key, _ in layer["statistics"][2:]] for layer in page["histories"][0]["layers"]]
    assert beside == [["running mean"], [], []]  # of its own layer only


def test_panels_share_ranges_that_hold_every_number(tmp_path):
    wide = grown(LAYERS, steps=[0, 9], widening=0.6)
    distribution_page({"narrow": grown(LAYERS, steps=[0, 9]), "wide": wide}, tmp_path / "page.html")
    ranges = data(tmp_path / "page.html")["ranges"][0]
    held = np.flatnonzero(np.asarray(wide["hidden 1"].histogram).any(0))
    assert ranges["histogram"] == [wide.edges[held[0]], wide.edges[held[-1] + 1]]
    lines = percentiles(wide["hidden 1"], (15, 85), wide.edges)
    assert ranges["percentiles"][0] < lines.min()
    assert lines.max() < ranges["percentiles"][1] < 1.2 * lines.max()


def test_nasty_names_stay_inside_the_data(tmp_path):
    history = grown(NASTY, steps=[0])
    distribution_page(dict.fromkeys(NASTY, history), tmp_path / "page.html", title=NASTY[0])
    page = data(tmp_path / "page.html")
    assert page["layers"] == [history["name"] for history in page["histories"]] == list(NASTY)
    text = (tmp_path / "page.html").read_text()
    assert len(re.findall("</script>", text)) == 3  # the data, plotly.js, the program
    assert "<title>&lt;/script&gt;" in text
    assert "{{" not in re.sub(r'<script id="data".*', "", text, flags=re.DOTALL)


def test_a_page_of_nothing_but_nan_is_a_page(tmp_path):
    distribution_page({"broken": grown(LAYERS, steps=[0], broken_at=0)}, tmp_path / "page.html")
    page = data(tmp_path / "page.html")
    assert page["ranges"][0] == {"histogram": [0, 1], "percentiles": [0, 1], "statistics": [0, 1]}
    assert page["histories"][0]["layers"][0]["percentiles"] == [[None], [None], [None]]


PAGE_ERRORS = [
    (lambda: distribution_page(HISTORY, "page.html"), TypeError, "distribution_page: `histories` must map names to histories; got a History. Write {'a name': history}."),
    (lambda: distribution_page({}, "page.html"), ValueError, "distribution_page: `histories` must hold at least one; got none. Write {'a name': history}."),
    (lambda: distribution_page({"without": History()}, "page.html"), ValueError, "distribution_page: a history must not be empty; got 0 steps of 0 layers in 'without'. Record a summary first."),
    (lambda: distribution_page({"a": grown(["x", "y"], [0]), "b": grown(["z"], [0])}, "page.html"), ValueError, "distribution_page: histories must have a layer in common; got 'a': x, y; 'b': z. Record them under the same names, or write a page for each."),
    (lambda: distribution_page({"a": per_feature()}, "page.html"), ValueError, "distribution_page: summaries must be of whole layers; got a histogram of shape (1, 3, 256) for 'hidden 1'. Summarize with axis=None."),
    (lambda: distribution_page({"a": HISTORY}, "nowhere/page.html"), FileNotFoundError, "distribution_page: `path` must be a file that can be written; got 'nowhere/page.html' (No such file or directory). Name a file in a folder that exists."),
    (lambda: distribution_page({"a": HISTORY}, "."), IsADirectoryError, "distribution_page: `path` must be a file that can be written; got '.' (Is a directory). Name a file in a folder that exists."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), PAGE_ERRORS)
def test_the_page_says_what_is_wrong_and_writes_nothing(call, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()
    assert not list(tmp_path.iterdir())


def test_the_wheel_carries_the_pages_parts(tmp_path):
    # Without a compiler, or the kernels that lie here would be compiled anew for this Python's jaxlib.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PATH": "", "CXX": ""})
    (wheel,) = tmp_path.glob("*.whl")
    assert {f"jaxnorm/plots/page.{ending}" for ending in ("html", "css", "js")} <= {*zipfile.ZipFile(wheel).namelist()}


@pytest.mark.parametrize("missing", ["matplotlib", "plotly"])
def test_without_the_extra_it_is_named(missing):
    code = f"import sys; sys.modules['{missing}'] = None; import jaxnorm, jaxnorm.inspect; import jaxnorm.plots"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ImportError: jaxnorm.plots needs {missing}: pip install 'jaxnorm[plots]'" in done.stderr


# ---- which numbers share statistics ----------------------------------------------------------------------------------


# Two normalized numbers are plus and minus one whatever they were: their Jacobian is zero.
TELLING = [
    case
    for case in CASES
    if case.core and case.given is None and np.bincount(case.areas.ravel()).min() > 2 and case.areas.size < 100
]


@pytest.mark.parametrize("case", TELLING, ids=str)
def test_sharing_is_that_of_the_table(case):
    """The table's labels were written by hand from the papers, the library's are read off its Jacobian."""
    sets = sharing_sets(lambda x: case.call(x), case.shape)
    first = np.unique(case.areas, return_index=True)[1]
    np.testing.assert_array_equal(sets, np.argsort(np.argsort(first))[case.areas])


def test_sharing_of_what_shares_nothing_or_everything():
    np.testing.assert_array_equal(sharing_sets(jnp.tanh, (2, 3)), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(sharing_sets(lambda x: jn.layer_norm(x, axis=None), (2, 3)), np.zeros((2, 3)))


def test_sharing_wants_the_shape_kept():
    message = "sharing_sets: `norm` must keep the shape; got (3,) from (2, 3). Wrap it to return y alone."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sharing_sets(lambda x: x.sum(0), (2, 3))


@pytest.mark.full
def test_the_sharing_picture_counts_what_it_shows(tmp_path):
    """Per block: how many sets, of how many numbers, and that many cubes in the colour of sharing."""
    figure = sharing_picture(tmp_path / "sharing.png")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "batch_norm(x, ...)\n6 sets of 16 numbers",
        "batch_norm(x, ..., ghost_size=2)\n12 sets of 8 numbers",
        "layer_norm(x)\n16 sets of 6 numbers",
        "layer_norm(x, axis=(1, 2))\n4 sets of 24 numbers",
        "group_norm(x, num_groups=2)\n8 sets of 12 numbers",
        "instance_norm(x)\n24 sets of 4 numbers",
    ]
    assert (tmp_path / "sharing.png").stat().st_size > 30_000
    assert not plt.get_fignums()
    blue = [
        sum(matplotlib.colors.to_hex(c.get_facecolor()[0]) == "#0072b2" for c in ax.collections) for ax in figure.axes
    ]
    assert blue == [16, 8, 6, 24, 12, 4]  # each of these sets lies wholly on the surface of its block
