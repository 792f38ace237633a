"""Haiku: {"params": params, "state": state} of a transformed function, with their module names."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxnorm.convert.debias import averaging, counter, scaled, weight_of
from jaxnorm.convert.entries import Entries, Entry, Keys, Parts
from jaxnorm.convert.framework import REQUIRED, Arrays, Framework, parameters, same, statistics, trailing
from jaxnorm.convert.layer import Layer, fail

AVERAGES = frozenset({"mean", "var"})


class Haiku(Framework):
    name = "haiku"
    separators = "/"
    words: ClassVar = {
        "batch_norm": {"decay_rate": REQUIRED, "eps": 1e-5},
        "layer_norm": {"axis": REQUIRED, "eps": 1e-5},
        "rms_norm": {"axis": REQUIRED, "eps": 1e-5},
        "group_norm": {"groups": REQUIRED, "eps": 1e-5},
        "instance_norm": {"eps": 1e-5},
        "spectral_norm": {"n_steps": 1, "eps": 1e-4},
    }
    fixed: ClassVar = {"batch_norm": {"ddof": 0, "debias": True}}
    places: ClassVar = {
        "scale": (("params",), ("scale",)),
        "bias": (("params",), ("offset",)),
        "mean": (("state",), ("~", "mean_ema", "average")),
        "var": (("state",), ("~", "var_ema", "average")),
        "mean_hidden": (("state",), ("~", "mean_ema", "hidden")),
        "var_hidden": (("state",), ("~", "var_ema", "hidden")),
        "count": (("state",), ("~", "mean_ema", "counter")),
        "var_count": (("state",), ("~", "var_ema", "counter")),
    }
    together = (frozenset({"mean", "var", "mean_hidden", "var_hidden", "count", "var_count"}),)
    numbers = frozenset({"count", "var_count"})
    counts = True
    full_rank = True
    own_names: ClassVar = {kind: kind for kind in ("layer_norm", "rms_norm", "group_norm", "instance_norm")}

    def nested(self, parts: Parts) -> Keys:
        return (parts[0], "/".join(parts[1:-1]), parts[-1])

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        """Spectral norms, whose weights are elsewhere: a function of the user's passes them."""
        found = {}
        for parts in entries:
            paths = {"u": parts, "sigma": (*parts[:-1], "sigma")}
            if parts[0] == "state" and parts[-1] == "u0" and paths["sigma"] in entries:
                found["/".join(parts[1:-1])] = ("spectral_norm", paths)
        return found

    def keys(self, kind: str, name: str) -> dict[str, Keys]:
        if kind == "spectral_norm":
            return {"u": ("state", name, "u0"), "sigma": ("state", name, "sigma")}
        return super().keys(kind, name)

    def check(self, kind: str, name: str, entries: Mapping[str, Entry]) -> None:
        if kind == "spectral_norm":
            u = entries["u"]
            same(u, (1, *u.shape[-1:]), u, "It is one row of features.")
            same(entries["sigma"], (), u, "It is one number.")
        else:
            super().check(kind, name, entries)

    def unpack(self, kind: str, name: str, entries: Mapping[str, Entry], words: dict[str, Any]) -> Arrays:
        arrays = super().unpack(kind, name, entries, words)
        if "mean" in arrays:
            if arrays["count"] != arrays["var_count"]:
                got = f"{arrays['count']} and {arrays['var_count']}"
                rule = f"'{entries['count'].name}' must be that of var_ema"
                fail(rule, got, "A batch norm updates both averages at once.")
            for role in sorted(AVERAGES):
                agree(name, entries[role].name, arrays, role, words["decay_rate"])
        return {role: narrow(a) if role in ("scale", "bias", "mean", "var", "u") else a for role, a in arrays.items()}

    def arguments(self, layer: Layer) -> dict[str, Any]:
        words = super().arguments(layer)
        if layer.kind in ("layer_norm", "rms_norm") and "axis" not in words:
            words["axis"] = trailing(1 if layer.scale is None else layer.scale.ndim)
        return words

    def pack(self, name: str, layer: Layer) -> Arrays:
        if layer.kind == "spectral_norm":
            assert layer.spectral is not None
            u, sigma = (np.asarray(a) for a in layer.spectral)
            return {"u": u.reshape(1, -1), "sigma": sigma}
        arrays = parameters(layer) | statistics(layer)
        if layer.stats is not None:
            t = counter(name, layer)
            part = weight_of(averaging(name, layer), t)
            arrays |= {f"{role}_hidden": scaled(arrays[role], part) for role in AVERAGES}
            arrays |= {role: np.asarray(t, np.int32) for role in ("count", "var_count")}
        return arrays


def narrow(a: np.ndarray) -> np.ndarray:
    """Without the axes of size one by which Haiku's parameters and averages broadcast to x."""
    return a.reshape([n for n in a.shape if n != 1] or 1)


def agree(layer: str, entry: str, arrays: Arrays, role: str, decay_rate: float) -> None:
    """The hidden sum is redundant: average (1 - decay_rate^counter). It shows a decay rate that is not the layer's."""
    average, hidden = arrays[role], arrays[f"{role}_hidden"]
    t = int(arrays["count"])
    expected = average * weight_of(decay_rate, t) if t > 0 else hidden
    if average.itemsize >= 4 and not np.allclose(hidden, expected, rtol=1e-2, atol=1e-6 * np.abs(expected).max()):
        share = np.median(hidden[average != 0] / average[average != 0])
        got = f"decay_rate={decay_rate:g} for hidden / average = {share:.6g} after {t} updates"
        todo = f"That is a decay rate of {max(0.0, 1 - share) ** (1 / t):.6g}: state the layer's own for '{layer}'."
        fail(f"'{entry}' must be hidden / (1 - decay_rate^counter)", got, todo)
