"""A picture of the ratios: one panel for each mode and dtype, one line of marks for each shape."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLORS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7f7f7f", "#8c510a", "#000000")
TICKS = (0.3, 0.5, 1, 2, 3, 5, 10, 20)
PANELS = [(mode, dtype) for dtype in ("float32", "bfloat16") for mode in ("forward", "forward+backward")]


def draw(rows: list[dict], path: Path, caption: str) -> None:
    timed = [row for row in rows if (row["mode"], row["dtype"]) in PANELS and row["contender"] != "jaxnorm"]
    shapes = list(dict.fromkeys((row["norm"], row["model"]) for row in timed))[::-1]
    names = list(dict.fromkeys(row["contender"] for row in timed))
    figure, axes = plt.subplots(1, 4, figsize=(16, 0.42 * len(shapes) + 2), layout="constrained", sharey=True)
    for ax, (mode, dtype) in zip(axes, PANELS, strict=True):
        for name, color in zip(names, COLORS, strict=False):
            found = [r for r in timed if (r["mode"], r["dtype"], r["contender"]) == (mode, dtype, name)]
            at = [shapes.index((row["norm"], row["model"])) for row in found]
            low, middle, high = zip(*(row["ratio"] for row in found), strict=True) if found else ((), (), ())
            ax.plot(middle, at, "o", color=color, label=name, markersize=5)
            ax.hlines(at, low, high, color=color, linewidth=1)
        ax.axvline(1, color="gray", linewidth=0.8)
        ax.set(xscale="log", title=f"{mode}, {dtype}", xlabel="their time / jaxnorm's")
        low, high = ax.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
        ax.set_yticks(range(len(shapes)), [f"{norm}: {model}" for norm, model in shapes])
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names))
    figure.suptitle(caption, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
