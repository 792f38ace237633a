"use strict";

// What jaxnorm/plots/page.py wrote: {step_name, even_bins, steps, layers, ranges, histories:
// [{name, steps, edges, layers}]}.
// `ranges` and each history's `layers` have one entry per name in page.layers, null where it was not recorded.
const page = JSON.parse(document.getElementById("data").textContent);
const [layerChoice, playButton, slider, now] = ["layer", "play", "step", "now"].map((id) => document.getElementById(id));
const dark = matchMedia("(prefers-color-scheme: dark)");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const CONFIG = { displayModeBar: false };

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (number) => (number === null ? "not finite" : String(Number(number.toPrecision(3))));
const percent = (share) => `${short(share && 100 * share)}%`;

// ---- the numbers at a step ------------------------------------------------------------------------------------------

const step = () => page.steps[slider.valueAsNumber];
const layerOf = (history) => history.layers[layerChoice.value];
const ranges = () => page.ranges[layerChoice.value];
const lastAt = (history) => history.steps.findLastIndex((s) => s <= step());

function describe(history) {
  const layer = layerOf(history);
  if (!layer) return `“${page.layers[layerChoice.value]}” was not recorded in this history: nothing to compare here.`;
  const i = lastAt(history);
  if (i < 0) return `Nothing was recorded up to this ${page.step_name}.`;
  if (layer.shares["not finite"][i] === null) return `Not recorded at this ${page.step_name}.`; // a share of no numbers
  const late = history.steps[i] === step() ? "" : `Last recorded at ${page.step_name} ${history.steps[i]}. `;
  const [low, middle, high] = layer.percentiles.map((line) => short(line[i]));
  const values = layer.statistics.map(([name, line]) => `${name} ${short(line[i])}`);
  const shares = Object.entries(layer.shares).map(([name, line]) => `${percent(line[i])} ${name}`);
  return `${late}${values.join(", ")}. 15% lie below ${low}, half below ${middle}, 85% below ${high}. ${shares.join(", ")}.`;
}

// ---- plots: each function returns the traces and the layout of one -------------------------------------------------

// Where a value stands on the histogram's axis: the recorded bins may widen from 0 outwards, as those of jaxnorm.inspect
// do, which spreads counts over decades; the axis then widens with them, or most bars would be thinner than a pixel.
const place = (value) => (page.even_bins ? value : Math.asinh(value / 0.02));

function histogram(history, layer, i, color) {
  const places = history.edges.map(place);
  const bars = {
    type: "bar",
    x: places.slice(1).map((right, k) => (places[k] + right) / 2),
    width: places.slice(1).map((right, k) => right - places[k]),
    y: i < 0 ? [] : layer.histogram[i],
    customdata: binNames(history.edges),
    hovertemplate: "%{customdata}: %{y}<extra></extra>",
    marker: { color },
  };
  const range = ranges().histogram.map(place);
  const ticks = page.even_bins ? {} : { tickvals: decades(range).map(place), ticktext: decades(range).map(String) };
  return [[bars], { bargap: 0, xaxis: { range, ...ticks }, yaxis: { rangemode: "tozero", title: { text: "count" } } }];
}

// The outermost bins also hold everything beyond them.
const binNames = (edges) =>
  edges.slice(1).map((right, k) => {
    if (k === 0) return `below ${short(right)}`;
    return k === edges.length - 2 ? `from ${short(edges[k])}` : `${short(edges[k])} to ${short(right)}`;
  });

function decades([low, high]) {
  const kept = [0];
  for (const decade of [0.01, 0.1, 1, 10, 100, 1000, 10000])
    if (place(decade) - place(kept.at(-1)) > 0.09 * (high - low)) kept.push(decade); // room for a label
  return kept.flatMap((value) => (value ? [-value, value] : [0]));
}

function percentiles(history, layer, i, color) {
  const [low, middle, high] = layer.percentiles;
  const line = (y, name, extra) => ({ x: history.steps, y, name, mode: "lines", line: { color, width: 1 }, ...extra });
  const traces = [
    line(low, "15%"),
    line(high, "85%", { fill: "tonexty", fillcolor: `${color}40` }),
    line(middle, "50%", { line: { color, width: 3 } }),
  ];
  return [traces, overTime(ranges().percentiles)];
}

function statistics(history, layer, i, color) {
  const colors = [color, css("--ink")]; // mean, deviation; what was recorded beside them follows in other dashes
  const dashes = ["solid", "dot", "dash", "dashdot", "longdash"];
  const traces = layer.statistics.map(([name, y], k) => {
    const line = { color: colors[k % 2], dash: dashes[Math.floor(k / 2) % 5], width: 2 };
    return { x: history.steps, y, name: plain(name), mode: "lines", line };
  });
  const legend = { orientation: "h", x: 0, y: 1, yanchor: "bottom" };
  return [traces, { ...overTime(ranges().statistics), showlegend: true, legend }];
}

const overTime = (range) => ({
  xaxis: { range: [page.steps[0], Math.max(page.steps.at(-1), page.steps[0] + 1)], title: { text: page.step_name } },
  yaxis: { range },
  shapes: [{ type: "line", x0: step(), x1: step(), yref: "paper", y0: 0, y1: 1, line: { color: css("--ink"), width: 2, dash: "dot" } }],
});

// Plotly reads some HTML in the names of traces; a name is text.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// ---- drawing --------------------------------------------------------------------------------------------------------

const PLOTS = { histogram, percentiles, statistics };

function draw() {
  slider.setAttribute("aria-valuetext", (now.textContent = `${page.step_name} ${step()}`));
  page.histories.forEach((history, k) => {
    const section = document.getElementById("panels").children[k];
    const layer = layerOf(history);
    const colors = css("--series").split(" ");
    const color = colors[k % colors.length];
    section.style.setProperty("--color", color);
    section.classList.toggle("missing", !layer);
    section.querySelector(".numbers").textContent = describe(history);
    if (!layer) return;
    for (const [name, plot] of Object.entries(PLOTS)) {
      const box = section.querySelector(`.${name}`);
      box.ariaLabel = `${name} of ${page.layers[layerChoice.value]}, ${history.name}; the numbers are in the text above`;
      const [traces, layout] = plot(history, layer, lastAt(history), color);
      Plotly.react(box, traces, themed(layout), CONFIG);
    }
  });
}

function themed(layout) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), fixedrange: true, automargin: true };
  return {
    showlegend: false,
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    dragmode: false, // a finger on a plot scrolls the page
    margin: { l: 48, r: 16, t: 8, b: 32 },
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0, 0, 0, 0)",
    plot_bgcolor: "rgba(0, 0, 0, 0)",
  };
}

// ---- controls -------------------------------------------------------------------------------------------------------

let timer = null;

function move(to) {
  slider.value = to;
  draw();
}

function stop() {
  clearInterval(timer);
  timer = null;
  playButton.textContent = "Play";
  announce("polite");
}

function play() {
  if (timer) return stop();
  if (slider.value === slider.max) move(0);
  playButton.textContent = "Pause";
  announce("off"); // a screen reader would be flooded; it hears the last one
  const pause = calm.matches ? 1500 : Math.max(150, Math.min(500, 10_000 / page.steps.length)); // milliseconds
  timer = setInterval(() => {
    move(slider.valueAsNumber + 1);
    if (slider.value === slider.max) stop();
  }, pause);
}

const announce = (how) => document.querySelectorAll(".numbers").forEach((text) => (text.ariaLive = how));

document.addEventListener("keydown", (event) => {
  if (event.target === slider || event.target === document.body) {
    if (event.key === " ") {
      event.preventDefault(); // the page would scroll
      play();
    } else if (event.target === document.body && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      slider[event.key === "ArrowLeft" ? "stepDown" : "stepUp"]();
      draw();
    }
  }
});
slider.addEventListener("input", draw);
layerChoice.addEventListener("change", draw);
playButton.addEventListener("click", play);
dark.addEventListener("change", draw);

// Also when a hidden plot comes back, which plotly's own `responsive` misses.
const resized = new ResizeObserver((boxes) => {
  for (const { target, contentRect } of boxes) if (contentRect.width) Plotly.Plots.resize(target);
});

slider.max = page.steps.length - 1;
page.layers.forEach((name, i) => layerChoice.add(new Option(name, i)));
const start = new URLSearchParams(location.hash.slice(1)); // index.html#layer=hidden+1&step=10 opens there
layerChoice.value = Math.max(0, page.layers.indexOf(start.get("layer")));
slider.value = page.steps.indexOf(Number(start.get("step")));
for (const history of page.histories) {
  const panel = document.getElementById("panel").content.cloneNode(true);
  panel.querySelector("h2").textContent = history.name;
  document.getElementById("panels").append(panel);
}
draw();
document.querySelectorAll(".plot").forEach((box) => resized.observe(box));
