"""Flax: the variables of Linen modules, and the states of NNX modules as `nnx.to_pure_dict` gives them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxnorm.convert.entries import Entries, Entry, Keys, Parts
from jaxnorm.convert.framework import Arrays, Framework, parameters, same, statistics
from jaxnorm.convert.layer import Layer, fail, settings

BEYOND = {"ddof": 0, "debias": False}  # words of jaxnorm.linen and jaxnorm.nnx that Flax lacks, when they matter not


class _Flax(Framework):
    separators = "/."
    words: ClassVar = {
        "batch_norm": {"momentum": 0.99, "epsilon": 1e-5} | BEYOND,
        "layer_norm": {"epsilon": 1e-6, "reduction_axes": None},
        "rms_norm": {"epsilon": 1e-6, "reduction_axes": None},
        "group_norm": {"num_groups": 32, "epsilon": 1e-6},
        "instance_norm": {"epsilon": 1e-6},
        "weight_norm": {"epsilon": 1e-12, "feature_axes": -1},
        "spectral_norm": {"n_steps": 1, "epsilon": 1e-12},
    }
    together = (frozenset({"mean", "var"}),)

    def check(self, kind: str, name: str, entries: Mapping[str, Entry]) -> None:
        if kind == "spectral_norm":
            weight = entries["weight"]
            same(entries["u"], (1, *weight.shape[-1:]), weight, f"It has the features of '{weight.name}'.")
            same(entries["sigma"], (), weight, "It is one number.")
        elif kind != "weight_norm":
            super().check(kind, name, entries)

    def unpack(self, kind: str, name: str, entries: Mapping[str, Entry], words: dict[str, Any]) -> Arrays:
        arrays = super().unpack(kind, name, entries, words)
        if kind == "weight_norm":
            words["axis"] = summed_axes(entries, words.pop("feature_axes"))
        elif kind == "spectral_norm":
            arrays["u"] = arrays["u"].reshape(-1)
        elif "count" in arrays and not words["debias"] and words["momentum"] is not None:
            todo = f"Say which: norms={{'{name}': {{'debias': True}}}}, or {{'momentum': None}}."
            got = f"momentum={words['momentum']}, debias=False"
            fail(f"'{entries['count'].name}' is kept with debias=True or momentum=None only", got, todo)
        if words.get("reduction_axes", 0) is None:
            del words["reduction_axes"]
        return arrays

    def arguments(self, layer: Layer) -> dict[str, Any]:
        words = super().arguments(layer)
        if layer.kind == "weight_norm" and layer.weight is not None:
            axis, ndim = settings(layer).get("axis", ()), layer.weight.ndim
            kept = None if axis is None else tuple(a - ndim for a in range(ndim) if a not in {b % ndim for b in axis})
            words["feature_axes"] = kept[0] if kept is not None and len(kept) == 1 else kept
        if "reduction_axes" in words and isinstance(words["reduction_axes"], tuple):
            words["feature_axes"] = words["reduction_axes"]
        return {word: value for word, value in words.items() if word not in BEYOND or value != BEYOND[word]}

    def carried(self, layer: Layer) -> dict[str, Any]:
        return super().carried(layer) | (BEYOND if layer.kind == "batch_norm" else {})

    def pack(self, name: str, layer: Layer) -> Arrays:
        if layer.kind == "spectral_norm":
            assert layer.spectral is not None
            u, sigma = (np.asarray(a) for a in layer.spectral)
            return {"weight": np.asarray(layer.weight), "u": u.reshape(1, -1), "sigma": sigma}
        if layer.kind == "weight_norm":
            return {"weight": np.asarray(layer.weight)} | parameters(layer)
        options, counted = settings(layer), {}
        if layer.stats is not None and (options["debias"] or options["momentum"] is None):
            counted = {"count": np.asarray(layer.stats.count)}
        return parameters(layer) | statistics(layer) | counted


def summed_axes(entries: Mapping[str, Entry], feature_axes: Any) -> tuple[int, ...] | None:
    """The axes of a weight that its scale leaves out."""
    scale, weight = entries["scale"], entries["weight"]
    if feature_axes is None or scale.shape == ():
        same(scale, (), weight, "feature_axes=None has one length in all.")
        return None
    n = len(weight.shape)
    features = {a % n for a in ((feature_axes,) if isinstance(feature_axes, int) else feature_axes)}
    kept = tuple(weight.shape[a] for a in sorted(features))
    same(scale, kept, weight, f"Those are the sizes of feature_axes={feature_axes} of shape {weight.shape}.")
    return tuple(a for a in range(n) if a not in features)


class Linen(_Flax):
    name = "flax"
    places: ClassVar = {
        "scale": (("params",), ("scale",)),
        "bias": (("params",), ("bias",)),
        "mean": (("batch_stats",), ("mean",)),
        "var": (("batch_stats",), ("var",)),
        "count": (("batch_stats",), ("count",)),
    }
    own_names: ClassVar = {
        "LayerNorm": "layer_norm",
        "RMSNorm": "rms_norm",
        "GroupNorm": "group_norm",
        "InstanceNorm": "instance_norm",
    }

    def nested(self, parts: Parts) -> Keys:
        return parts

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        marks = {("params", "scale"): "weight_norm", ("batch_stats", "u"): "spectral_norm"}
        found = {}
        for parts in entries:
            kind, path = marks.get((parts[0], parts[-1]), ""), parts[1:-1]
            for i in reversed(range(len(path) if kind else 0)):  # where the wrapper's name ends, its weight's begins
                keys = self.weight_keys(kind, path[:i], path[i:])
                paths = {role: self.split(key) for role, key in keys.items()}
                if entries.keys() >= set(paths.values()):
                    found[self.weight_name(path[:i], path[i:])] = (kind, paths)
                    break
        return found

    def weight_keys(self, kind: str, module: Parts, weight: Parts) -> dict[str, Keys]:
        """A wrapper's variables have the weight's path in their names; the weight is its own or its sibling's."""
        inner = "/".join(weight)
        owner = module if weight[:1] == ("layer_instance",) else module[:-1]
        keys: dict[str, Keys] = {"weight": ("params", *owner, *weight)}
        if kind == "weight_norm":
            return keys | {"scale": ("params", *module, f"{inner}/scale")}
        return keys | {role: ("batch_stats", *module, f"{inner}/{role}") for role in ("u", "sigma")}


class Nnx(_Flax):
    name = "nnx"
    places: ClassVar = {role: ((), (role,)) for role in ("scale", "bias", "mean", "var", "count")}

    def nested(self, parts: Parts) -> Keys:
        return tuple(int(part) if part.isdigit() else part for part in parts)  # lists have numbers

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        found = {}
        for parts in entries:
            for mark, end, kind in (("scales", (), "weight_norm"), ("batch_stats", ("u",), "spectral_norm")):
                if mark in parts and parts[len(parts) - len(end) :] == end:
                    i = parts.index(mark)
                    module, weight = parts[:i], parts[i + 1 : len(parts) - len(end)]
                    paths = {role: self.split(keys) for role, keys in self.weight_keys(kind, module, weight).items()}
                    if entries.keys() >= set(paths.values()):
                        found[self.weight_name(module, weight)] = (kind, paths)
        return found

    def weight_keys(self, kind: str, module: Parts, weight: Parts) -> dict[str, Keys]:
        wrapper = self.nested(module)
        keys: dict[str, Keys] = {"weight": (*wrapper, "layer_instance", *self.nested(weight))}
        if kind == "weight_norm":
            return keys | {"scale": (*wrapper, "scales", self.nested(weight))}
        return keys | {role: (*wrapper, "batch_stats", (*self.nested(weight), role)) for role in ("u", "sigma")}
