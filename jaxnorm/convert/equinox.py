"""Equinox: the arrays of its modules under their field names, and of a State under the fields that index it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxnorm.convert.debias import averaging, counter, scaled, weight_of
from jaxnorm.convert.entries import Entries, Entry, Keys, Parts
from jaxnorm.convert.framework import REQUIRED, Arrays, Framework, parameters, same, statistics
from jaxnorm.convert.layer import Layer
from jaxnorm.convert.weights import from_torch, kept_axis, torch_vectors, torch_weight, widened


class Equinox(Framework):
    name = "equinox"
    separators = "./"
    words: ClassVar = {
        "batch_norm": {"eps": 1e-5, "momentum": 0.99},
        "layer_norm": {"eps": 1e-5},
        "rms_norm": {"eps": 1e-5},
        "group_norm": {"groups": REQUIRED, "eps": 1e-5},
        "weight_norm": {},
        "spectral_norm": {"num_power_iterations": 1, "eps": 1e-12},
    }
    fixed: ClassVar = {"batch_norm": {"ddof": 0, "debias": True}, "weight_norm": {"epsilon": 0.0}}
    places: ClassVar = {
        "scale": ((), ("weight",)),
        "bias": ((), ("bias",)),
        "mean": ((), ("batch_state_index", "0")),
        "var": ((), ("batch_state_index", "1")),
        "count": ((), ("batch_counter",)),
        "ema_mean": ((), ("ema_state_index", "0")),
        "ema_var": ((), ("ema_state_index", "1")),
        "first": ((), ("ema_first_time_index",)),
    }
    together = (frozenset({"mean", "var", "count"}), frozenset({"ema_mean", "ema_var", "first"}))
    numbers = frozenset({"count", "first"})
    floor = True
    counts = True
    biased = Framework.biased | {"rms_norm"}

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        found = {}
        for parts, entry in entries.items():
            if parts[-2:-1] == ("layer",) and len(entry.shape) > 1:
                for kind in ("weight_norm", "spectral_norm"):
                    keys = self.weight_keys(kind, parts[:-2], parts[-1:])
                    paths = {role: self.split(key) for role, key in keys.items()}
                    if entries.keys() >= set(paths.values()):
                        found[self.weight_name(parts[:-2], parts[-1:])] = (kind, paths)
        return found

    def weight_keys(self, kind: str, module: Parts, weight: Parts) -> dict[str, Keys]:
        ends = {"weight": ("layer", *weight)} | (
            {"scale": ("g",)} if kind == "weight_norm" else {"u": ("uv_index", "0"), "v": ("uv_index", "1")}
        )
        return {role: self.nested((*module, *end)) for role, end in ends.items()}

    def check(self, kind: str, name: str, entries: Mapping[str, Entry]) -> None:
        weight = entries.get("weight")
        if kind == "weight_norm" and weight:
            kept_axis(entries["scale"], weight, whole=[(1,) * len(weight.shape)])
        elif kind == "spectral_norm" and weight:
            todo = f"It belongs to '{weight.name}' of shape {weight.shape}."
            same(entries["u"], weight.shape[:1], weight, todo)
            same(entries["v"], (int(np.prod(weight.shape[1:])),), weight, todo)
        else:
            super().check(kind, name, entries)

    def unpack(self, kind: str, name: str, entries: Mapping[str, Entry], words: dict[str, Any]) -> Arrays:
        arrays = super().unpack(kind, name, entries, words)
        if "ema_mean" in arrays:
            words["debias"], first = False, bool(arrays["first"])
            mean, var = arrays["ema_mean"], arrays["ema_var"]  # before the first update they hold nothing
            return arrays | {
                "mean": np.zeros_like(mean) if first else mean,
                "var": np.ones_like(var) if first else var,
                "count": np.asarray(0 if first else 1),
            }
        if "mean" in arrays:
            t = int(arrays["count"])
            part = weight_of(words["momentum"], t) if t else 1
            return arrays | {role: scaled(arrays[role], 1 / part) for role in ("mean", "var")}
        if kind == "weight_norm":
            whole = arrays["scale"].size == 1 < arrays["weight"].shape[0]
            words["axis"] = None if whole else tuple(range(arrays["weight"].ndim - 1))
            return {"scale": arrays["scale"].reshape(() if whole else -1), "weight": from_torch(arrays["weight"], 0)}
        if kind == "spectral_norm":
            w, u, v = (arrays[role] for role in ("weight", "u", "v"))
            return {"weight": from_torch(w, 0), "u": u, "sigma": np.asarray(u @ widened(w).reshape(len(u), -1) @ v)}
        return arrays

    def array(self, a: np.ndarray) -> Any:
        return jnp.asarray(int(a) if a.dtype.kind == "i" else a)  # a State's counter must stay weakly typed

    def pack(self, name: str, layer: Layer) -> Arrays:
        if layer.kind == "weight_norm":
            return torch_weight(name, layer)
        if layer.kind == "spectral_norm":
            return torch_weight(name, layer) | torch_vectors(layer)
        arrays = parameters(layer) | statistics(layer)
        if layer.stats is not None:
            t = counter(name, layer)
            part = weight_of(averaging(name, layer), t) if t else 1
            arrays |= {role: scaled(arrays[role], part) for role in ("mean", "var")}
            arrays["count"] = np.asarray(t, np.int32)
        return arrays
