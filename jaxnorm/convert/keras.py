"""Keras 3: weights by path, `{v.path: v.numpy() for v in model.variables}`."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxnorm.convert.entries import Entries, Entry, Keys, Parts
from jaxnorm.convert.framework import Arrays, Framework, parameters, same, statistics
from jaxnorm.convert.layer import Layer, fail
from jaxnorm.convert.weights import half_step

FLOOR = 1e-7  # keras.backend.epsilon(), below which its spectral norm does not divide


class Keras(Framework):
    name = "keras"
    separators = "/"
    words: ClassVar = {
        "batch_norm": {"momentum": 0.99, "epsilon": 1e-3},
        "layer_norm": {"epsilon": 1e-3},
        "rms_norm": {"epsilon": 1e-6},
        "group_norm": {"groups": 32, "epsilon": 1e-3},
        "spectral_norm": {"power_iterations": 1},
    }
    fixed: ClassVar = {"batch_norm": {"ddof": 0, "debias": False}, "spectral_norm": {"epsilon": FLOOR**2}}
    places: ClassVar = {
        "scale": ((), ("gamma",)),
        "rms_scale": ((), ("scale",)),
        "bias": ((), ("beta",)),
        "mean": ((), ("moving_mean",)),
        "var": ((), ("moving_variance",)),
    }
    together = (frozenset({"mean", "var"}),)
    own_names: ClassVar = {
        "layer_normalization": "layer_norm",
        "rms_normalization": "rms_norm",
        "group_normalization": "group_norm",
    }

    def norms(self, entries: Entries) -> dict[str, dict[str, Parts]]:
        """As of any framework; but the scale of an RMS norm is not called gamma."""
        found = super().norms(entries)
        return {
            name: {"scale" if role == "rms_scale" else role: parts for role, parts in roles.items()}
            for name, roles in found.items()
        }

    def keys(self, kind: str, name: str) -> dict[str, Keys]:
        keys = super().keys(kind, name)
        rms = keys.pop("rms_scale", None)
        return {"scale": rms} if kind == "rms_norm" and rms else keys

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        found = {}
        weights = [parts for parts in entries if parts[-1] in ("kernel", "embeddings")]
        for u in (parts for parts in entries if parts[-1] == "vector_u"):
            module = u[:-1]
            for weight in weights:
                if weight[:-2] == module:
                    found[self.weight_name(module, weight[-2:])] = ("spectral_norm", {"u": u, "weight": weight})
        return found

    def weight_keys(self, kind: str, module: Parts, weight: Parts) -> dict[str, Keys]:
        return {"u": self.nested((*module, "vector_u")), "weight": self.nested((*module, *weight))}

    def check(self, kind: str, name: str, entries: Mapping[str, Entry]) -> None:
        if kind == "spectral_norm":
            weight = entries["weight"]
            same(entries["u"], (1, *weight.shape[-1:]), weight, f"It has the features of '{weight.name}'.")
        else:
            super().check(kind, name, entries)

    def unpack(self, kind: str, name: str, entries: Mapping[str, Entry], words: dict[str, Any]) -> Arrays:
        arrays = super().unpack(kind, name, entries, words)
        if kind == "spectral_norm":
            arrays["u"] = arrays["u"].reshape(-1)
            arrays["sigma"] = sigma(arrays["weight"], arrays["u"])
        if words.get("groups") == -1:  # one group for each feature
            words["groups"] = entries["scale" if "scale" in entries else "bias"].shape[0]
        return arrays

    def arguments(self, layer: Layer) -> dict[str, Any]:
        words = super().arguments(layer)
        return {word: value for word, value in words.items() if value is not None}  # there is no cumulative average

    def array(self, a: np.ndarray) -> np.ndarray:
        return a

    def pack(self, name: str, layer: Layer) -> Arrays:
        if layer.kind != "spectral_norm":
            return parameters(layer) | statistics(layer)
        if layer.weight is None or layer.spectral is None:
            fail(f"'{name}' must have its weight", "none", "Keras keeps the weight it has normalized.")
        weight, u = layer.weight, np.asarray(layer.spectral.u)
        normal = (weight / sigma(weight, u)).astype(weight.dtype)
        return {"weight": normal, "u": u.reshape(1, -1)}


def sigma(weight: np.ndarray, u: np.ndarray) -> np.ndarray:
    return half_step(weight.reshape(-1, weight.shape[-1]), u, FLOOR**2)[1]
