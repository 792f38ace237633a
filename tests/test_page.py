"""The page as a browser shows it: headless Chromium opens the file, presses keys, and is asked what it drew."""

import re
import shutil
import time

import numpy as np
import pytest
from histories import NASTY, grown

from jaxnorm.inspect import EDGES, percentiles
from jaxnorm.plots import distribution_page

pytestmark = pytest.mark.browser

LAYERS = ("hidden 1", "hidden 2", "logits")
COMPARED = {
    "with batch norm": grown(LAYERS, steps=range(12), seed=1, running="hidden 1"),
    "without": grown(LAYERS[:2], steps=range(10), seed=2, widening=0.3),
}
WIDENING = {"default edges": grown(LAYERS, steps=range(3), edges=EDGES), "even edges": grown(LAYERS, steps=range(3))}


@pytest.fixture(scope="module")
def driver():
    """One Chromium for all tests. Imported here: the plain tests collect this file without selenium."""
    from selenium import webdriver

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "tests of the page need chromium on the PATH"
    assert chromedriver, "tests of the page need chromedriver on the PATH"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def emulate(driver):
    """Pretend to be a phone, dark, or calm; undone afterwards."""

    def emulate(width: int | None = None, **media: str) -> None:
        features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        if width:
            size = {"width": width, "height": 780, "deviceScaleFactor": 2, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    yield emulate
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def page(driver, tmp_path):
    """Opens a page of histories, and afterwards wants a silent console and not one request beyond the file."""
    path = tmp_path / "index.html"

    def page(histories=COMPARED, fragment="", **options):
        distribution_page(histories, path, step_name="epoch", **options)
        driver.get(path.as_uri() + fragment)
        # On a busy machine `get` may return while the empty page before this one is still there.
        wait(lambda: driver.execute_script("return document.querySelectorAll('.numbers').length"), seconds=30)
        return driver

    driver.get("about:blank")
    driver.get_log("browser"), driver.get_log("performance")
    yield page
    assert driver.get_log("browser") == []
    assert requests(driver) == {path.as_uri()}


def requests(driver) -> set[str]:
    log = [entry["message"] for entry in driver.get_log("performance") if "requestWillBeSent" in entry["message"]]
    urls = {re.search(r'"request":\{.*?"url":"(.*?)"', message)[1] for message in log}
    return {url for url in urls if not url.startswith("data:")}


def find(driver, selector: str):
    return driver.find_element("css selector", selector)


def press(driver, selector: str, *keys: str) -> None:
    for key in keys:
        find(driver, selector).send_keys(key)


def options(driver) -> list[str]:
    return driver.execute_script("return [...layer.options].map((option) => option.textContent)")


def choose(driver, layer: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(find(driver, "#layer")).select_by_index(options(driver).index(layer))


def go_to(driver, index: int) -> None:
    """As a person drags it: the slider moves and says so."""
    script = "slider.value = arguments[0]; slider.dispatchEvent(new Event('input'))"
    driver.execute_script(script, index)


def shown(driver) -> str:
    return find(driver, "#now").text


def drawn(driver, panel: int, plot: str, trace: int = 0) -> dict:
    """What plotly holds of a trace, as it draws it."""
    script = """
        const trace = document.querySelectorAll("section")[arguments[0]].querySelector("." + arguments[1])
          ._fullData[arguments[2]];
        return Object.fromEntries(["x", "y", "width"].filter((k) => trace[k]).map((k) => [k, Array.from(trace[k])]));
    """
    return driver.execute_script(script, panel, plot, trace)


def wait(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def numbers(driver, panel: int) -> str:
    return driver.find_elements("css selector", ".numbers")[panel].text


# ---- what it shows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS[:2])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_the_histogram_is_the_historys(page, layer, step):
    driver = page()
    choose(driver, layer)
    go_to(driver, step)
    for panel, history in enumerate(COMPARED.values()):
        bars = drawn(driver, panel, "histogram")
        assert bars["y"] == np.asarray(history[layer].histogram)[step].tolist()
        edges = np.asarray(history.edges, np.float64)
        np.testing.assert_allclose(np.subtract(bars["x"], np.divide(bars["width"], 2)), edges[:-1], atol=1e-12)
        np.testing.assert_allclose(np.add(bars["x"], np.divide(bars["width"], 2)), edges[1:], atol=1e-12)


def test_bins_that_widen_from_zero_keep_their_counts_on_an_axis_that_widens_with_them(page):
    driver = page(WIDENING)
    go_to(driver, 2)
    for panel, history in enumerate(WIDENING.values()):
        bars = drawn(driver, panel, "histogram")
        assert bars["y"] == history["hidden 1"].histogram[2].tolist()
        left = np.subtract(bars["x"], np.divide(bars["width"], 2))
        np.testing.assert_allclose(0.02 * np.sinh(left), history.edges[:-1], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(drawn(driver, 0, "histogram")["width"], 0.11, rtol=1e-4)
    script = """
        const axis = document.querySelector(".histogram")._fullLayout.xaxis;
        return axis.tickvals.map((at, i) => [at, Number(axis.ticktext[i])]);
    """
    ticks = np.array(driver.execute_script(script))
    assert {-1, 0, 1} <= set(ticks[:, 1])
    np.testing.assert_allclose(0.02 * np.sinh(ticks[:, 0]), ticks[:, 1], rtol=1e-9)


def test_the_bars_on_the_screen_have_the_counts_heights(page):
    """Not what plotly was told but what it painted: heights in pixels."""
    driver = page()
    go_to(driver, 5)
    script = "return [...document.querySelectorAll('.histogram .bars .point path')].map((bar) => bar.getBBox().height)"
    heights = np.array(driver.execute_script(script)).reshape(2, -1)
    for painted, history in zip(heights, COMPARED.values(), strict=True):
        counts = np.asarray(history["hidden 1"].histogram)[5]
        np.testing.assert_allclose(painted / painted.max(), counts / counts.max(), atol=0.01)  # a pixel in 150


@pytest.mark.parametrize("layer", LAYERS[:2])
def test_percentiles_and_statistics_are_the_historys(page, layer):
    driver = page()
    choose(driver, layer)
    for panel, history in enumerate(COMPARED.values()):
        expected = percentiles(history[layer], (15, 85, 50), history.edges)
        for trace, line in enumerate(expected):
            assert drawn(driver, panel, "percentiles", trace) == {"x": history.steps.tolist(), "y": line.tolist()}
        for trace, line in enumerate((history[layer].mean, history[layer].std)):
            assert drawn(driver, panel, "statistics", trace)["y"] == line.tolist()


def test_running_statistics_are_drawn_beside_their_layer(page):
    driver = page()
    expected = COMPARED["with batch norm"].scalars["hidden 1/running mean"]
    assert drawn(driver, 0, "statistics", 2)["y"] == expected.tolist()
    legends = "return [...document.querySelectorAll('.statistics')].map((p) => p.textContent.includes('running mean'))"
    assert driver.execute_script(legends) == [True, False]
    choose(driver, "hidden 2")
    assert driver.execute_script(legends) == [False, False]


def test_the_text_and_the_marker_follow_the_step(page):
    driver = page()
    go_to(driver, 7)
    history = COMPARED["without"]
    assert shown(driver) == find(driver, "#step").get_attribute("aria-valuetext") == "epoch 7"
    assert f"mean {history['hidden 1'].mean[7]:.3g}," in numbers(driver, 1)
    assert f"half below {percentiles(history['hidden 1'], (50,), history.edges)[0][7]:.3g}," in numbers(driver, 1)
    script = "return [...document.querySelectorAll('.percentiles, .statistics')].map((p) => p._fullLayout.shapes[0].x0)"
    assert driver.execute_script(script) == [7, 7, 7, 7]


def test_a_layer_in_one_history_leaves_an_explained_empty_panel(page):
    driver = page()
    choose(driver, "logits")
    assert "“logits” was not recorded in this history" in numbers(driver, 1)
    visible = [plot.is_displayed() for plot in driver.find_elements("css selector", ".plot")]
    assert visible == [True] * 3 + [False] * 3
    choose(driver, "hidden 2")
    assert all(plot.is_displayed() for plot in driver.find_elements("css selector", ".plot"))


def test_a_history_that_stopped_early_says_so(page):
    driver = page()
    go_to(driver, 11)
    assert "Last recorded at epoch 9." in numbers(driver, 1)
    assert "Last recorded" not in numbers(driver, 0)
    assert drawn(driver, 1, "histogram")["y"] == np.asarray(COMPARED["without"]["hidden 1"].histogram)[9].tolist()


def test_a_history_that_begins_late_says_so(page):
    driver = page({"all": grown(LAYERS, steps=range(4)), "late": grown(LAYERS, steps=[2, 3])})
    assert "Nothing was recorded up to this epoch." in numbers(driver, 1)
    assert drawn(driver, 1, "histogram")["y"] == []


def test_a_layer_that_was_left_out_at_a_step_says_so(page):
    history = grown(LAYERS, steps=range(2))
    history.record(2, loss=1.0)
    driver = page({"gaps": history})
    go_to(driver, 2)
    assert numbers(driver, 0) == "Not recorded at this epoch."
    assert set(drawn(driver, 0, "histogram")["y"]) == {0}


def test_numbers_that_are_not_finite_are_said_and_left_out(page):
    driver = page({"broken": grown(LAYERS, steps=range(3), broken_at=1)})
    go_to(driver, 1)
    assert "mean not finite" in numbers(driver, 0)
    assert drawn(driver, 0, "statistics")["y"][1] is None
    go_to(driver, 2)
    assert "mean not finite" not in numbers(driver, 0)


def test_nasty_names_are_text(page):
    history = grown(NASTY, steps=range(3))
    driver = page({"</script><script>broken = 1</script>": history, "<img src=x onerror='broken = 1'>": history})
    assert options(driver) == list(NASTY)
    for name in NASTY:
        choose(driver, name)
        go_to(driver, 2)
        assert drawn(driver, 1, "histogram")["y"] == np.asarray(history[name].histogram)[2].tolist()
    titles = [title.text for title in driver.find_elements("css selector", "h2")]
    assert titles == ["</script><script>broken = 1</script>", "<img src=x onerror='broken = 1'>"]
    assert driver.execute_script("return typeof broken") == "undefined"


@pytest.mark.parametrize(
    ("fragment", "layer", "step"),
    [("#layer=hidden+2&step=7", "hidden 2", 7), ("#step=11", "hidden 1", 11), ("#layer=none&step=99", "hidden 1", 0)],
)
def test_an_address_opens_at_a_layer_and_step(page, fragment, layer, step):
    driver = page(fragment=fragment)
    assert options(driver)[int(find(driver, "#layer").get_property("value"))] == layer
    assert shown(driver) == f"epoch {step}"
    assert drawn(driver, 0, "histogram")["y"] == COMPARED["with batch norm"][layer].histogram[step].tolist()


# ---- how it is used --------------------------------------------------------------------------------------------------


def test_the_keyboard_moves_the_slider(page):
    driver = page()
    for key, expected in (("\ue014", 1), ("\ue014", 2), ("\ue012", 1), ("\ue010", 11), ("\ue011", 0)):
        press(driver, "#step", key)  # right, right, left, end, home
        assert shown(driver) == f"epoch {expected}"
    press(driver, "body", "\ue014", "\ue014", "\ue012")
    assert shown(driver) == "epoch 1"


def test_the_keyboard_reaches_every_control_in_order(page):
    driver = page()
    reached = []
    for _ in range(3):
        driver.switch_to.active_element.send_keys("\ue004")
        reached.append(driver.switch_to.active_element.get_attribute("id"))
        assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["layer", "play", "step"]
    names = [find(driver, f"#{id}").accessible_name for id in reached]
    assert names == ["Layer", "Play", "epoch 0"]


def test_the_keyboard_chooses_a_layer(page):
    driver = page()
    press(driver, "#layer", "\ue015")  # down
    assert (
        drawn(driver, 0, "histogram")["y"] == np.asarray(COMPARED["with batch norm"]["hidden 2"].histogram)[0].tolist()
    )


@pytest.mark.parametrize(("selector", "key"), [("#step", " "), ("body", " "), ("#play", " "), ("#play", "\ue007")])
def test_space_plays_and_pauses(page, selector, key):
    driver = page()
    button = find(driver, "#play")
    press(driver, selector, key)
    assert button.text == "Pause"
    assert find(driver, ".numbers").get_attribute("aria-live") == "off"  # no flood for a screen reader
    press(driver, selector, key)
    assert button.text == "Play"
    assert find(driver, ".numbers").get_attribute("aria-live") == "polite"
    stopped = shown(driver)
    time.sleep(1.2)
    assert shown(driver) == stopped


def test_play_runs_to_the_end_and_starts_again(page):
    driver = page()
    button = find(driver, "#play")
    button.click()
    seen = []
    deadline = time.monotonic() + 20
    while button.text == "Pause" and time.monotonic() < deadline:
        seen.append(shown(driver))
        time.sleep(0.05)
    assert list(dict.fromkeys(seen))[:12] == [f"epoch {i}" for i in range(12)][: len(set(seen))]
    assert len(set(seen)) >= 11
    assert (button.text, shown(driver)) == ("Play", "epoch 11")
    button.click()
    assert shown(driver) in ("epoch 0", "epoch 1")


def test_calm_eyes_get_slow_still_pictures(page, emulate):
    emulate(reduced_motion="reduce")
    driver = page()
    find(driver, "#play").click()
    time.sleep(1.1)
    assert shown(driver) == "epoch 0"
    time.sleep(0.9)
    assert shown(driver) == "epoch 1"


# ---- on a phone and in the dark -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 360, 1200])
def test_nothing_scrolls_sideways(page, emulate, width):
    emulate(width)
    long = "encoder.layers.11.attention.output.dense." * 4
    histories = {"with " + long: grown((*LAYERS, long), range(3)), "without": grown((*LAYERS, long), range(3))}
    driver = page(histories, title=long)
    choose(driver, long)
    widths = "return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
    assert driver.execute_script(widths) == [width] * 3
    boxes = [
        element.rect for element in driver.find_elements("css selector", "select, button, input, section, .main-svg")
    ]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    tops = {section.rect["y"] for section in driver.find_elements("css selector", "section")}
    assert len(tops) == (1 if width == 1200 else 2)  # side by side, or one below the other


def test_a_plot_that_was_hidden_fits_a_turned_phone(page, emulate):
    emulate(780)
    driver = page()
    choose(driver, "logits")
    emulate(360)
    choose(driver, "hidden 1")
    script = """
        const all = [...document.querySelectorAll(".plot")];
        return all.every((plot) => plot.querySelector(".main-svg").clientWidth === plot.clientWidth);
    """
    wait(lambda: driver.execute_script(script))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_everything_is_legible(page, emulate, scheme, width):
    """Text at 4.5:1 and lines at 3:1 of contrast to the paper, as WCAG 2.2 asks (1.4.3, 1.4.11)."""
    emulate(width, color_scheme=scheme)
    driver = page({f"panel {i}": history for i, history in enumerate([*COMPARED.values()] * 2)})
    script = """
        const color = (element, what) => getComputedStyle(element)[what];
        const all = (selector) => [...document.querySelectorAll(selector)];
        return {
          paper: color(document.body, "backgroundColor"),
          text: [
            ...all("h1, h2, h3, p, label, select, button, kbd").map((e) => color(e, "color")),
            ...all("svg text").map((e) => color(e, "fill")),
          ],
          lines: [
            ...all(".histogram .bars path").map((e) => color(e, "fill")),
            ...all(".lines .js-line").map((e) => color(e, "stroke")),
          ],
        };
    """
    colors = driver.execute_script(script)
    assert len(colors["text"]) > 50
    assert len(set(colors["lines"])) >= 5  # a colour for each of four panels, and the ink
    assert (luminance(colors["paper"]) < 0.05) == (scheme == "dark")
    assert min(contrast(color, colors["paper"]) for color in colors["text"]) >= 4.5
    assert min(contrast(color, colors["paper"]) for color in colors["lines"]) >= 3


def test_dark_mode_recolours_an_open_page(page, emulate):
    emulate(color_scheme="light")
    driver = page()
    script = "return getComputedStyle(document.querySelector('svg text')).fill"
    light = driver.execute_script(script)
    emulate(color_scheme="dark")  # the browser tells the page when it comes to it
    wait(lambda: driver.execute_script(script) != light)


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    part = np.array([int(value) for value in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", color).groups()]) / 255
    return float(np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
