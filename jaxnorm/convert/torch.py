"""torch: `state_dict()` of modules and of the parametrizations weight_norm and spectral_norm."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxnorm.arguments import wide
from jaxnorm.convert.entries import Entries, Entry, Keys, Parts
from jaxnorm.convert.framework import REQUIRED, Arrays, Framework, parameters, same, statistics, updates
from jaxnorm.convert.layer import Layer, settings
from jaxnorm.convert.weights import from_torch, kept_axis, torch_vectors, torch_weight, widened

RUNNING = {"ddof": 1, "debias": False}
# How the two parametrizations are stored, within `parametrizations.<weight>`, and by the functions before torch 2.0.
STORED = {
    "weight_norm": {"scale": ("original0",), "weight": ("original1",)},
    "spectral_norm": {"weight": ("original",), "u": ("0", "_u"), "v": ("0", "_v")},
}
OLD = {
    "weight_norm": {"scale": "weight_g", "weight": "weight_v"},
    "spectral_norm": {"weight": "weight_orig", "u": "weight_u", "v": "weight_v"},
}


class Torch(Framework):
    name = "torch"
    separators = "."
    words: ClassVar = {
        "batch_norm": {"eps": 1e-5, "momentum": 0.1},
        "instance_norm": {"eps": 1e-5, "momentum": 0.1},
        "layer_norm": {"eps": 1e-5},
        "rms_norm": {"eps": None},
        "group_norm": {"num_groups": REQUIRED, "eps": 1e-5},
        "weight_norm": {},
        "spectral_norm": {"n_power_iterations": 1, "eps": 1e-12},
    }
    fixed: ClassVar = {"batch_norm": RUNNING, "instance_norm": RUNNING, "weight_norm": {"epsilon": 0.0}}
    places: ClassVar = {
        "scale": ((), ("weight",)),
        "bias": ((), ("bias",)),
        "mean": ((), ("running_mean",)),
        "var": ((), ("running_var",)),
        "count": ((), ("num_batches_tracked",)),
    }
    floor = True
    together = (frozenset({"mean", "var"}),)

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        inside: dict[tuple[Parts, Parts], set[Parts]] = {}
        for parts in entries:
            if "parametrizations" in parts[:-2]:
                i = parts.index("parametrizations")
                inside.setdefault((parts[:i], parts[i + 1 : i + 2]), set()).add(parts[i + 2 :])
        found = {}
        for (module, weight), stored in inside.items():
            for kind, roles in STORED.items():
                if stored == set(roles.values()):  # nothing more: a second parametrization would be another weight
                    paths = {role: (*module, "parametrizations", *weight, *end) for role, end in roles.items()}
                    found[self.weight_name(module, weight)] = (kind, paths)
        for module in {parts[:-1] for parts in entries}:
            for kind, leaves in OLD.items():
                paths = {role: (*module, leaf) for role, leaf in leaves.items()}
                if entries.keys() >= set(paths.values()):
                    found[self.weight_name(module, ("weight",))] = (kind, paths)
        return found

    def weight_keys(self, kind: str, module: Parts, weight: Parts) -> dict[str, Keys]:
        inside = (*module, "parametrizations", *weight)
        return {role: self.nested((*inside, *end)) for role, end in STORED[kind].items()}

    def check(self, kind: str, name: str, entries: Mapping[str, Entry]) -> None:
        if kind == "weight_norm":
            kept_axis(entries["scale"], entries["weight"], whole=[()])
        elif kind == "spectral_norm":
            out_axes(entries)
        else:
            super().check(kind, name, entries)

    def unpack(self, kind: str, name: str, entries: Mapping[str, Entry], words: dict[str, Any]) -> Arrays:
        arrays = super().unpack(kind, name, entries, words)
        if kind == "weight_norm":
            dim = kept_axis(entries["scale"], entries["weight"], whole=[()])
            words["axis"] = None if dim is None else tuple(range(arrays["weight"].ndim - 1))
            arrays["scale"] = arrays["scale"].reshape(() if dim is None else -1)
            arrays |= {"weight": from_torch(arrays["weight"], dim or 0), "dim": np.asarray(dim or 0)}
        elif kind == "spectral_norm":
            arrays |= singular(arrays, out_axes(entries))
        return arrays

    def options(self, kind: str, words: dict[str, Any], scale: np.ndarray | None) -> dict[str, Any]:
        options = super().options(kind, words, scale)
        if options.get("momentum") is not None:
            options["momentum"] = complement(options["momentum"])
        elif kind == "instance_norm":
            options["momentum"] = 1.0  # None is no cumulative average there: torch's statistics then stay as they are
        if options.get("epsilon", 0.0) is None:  # torch's default: a rounding unit of what it computes in
            options["epsilon"] = float(np.finfo(wide(np.float32 if scale is None else scale.dtype)).eps)
        return options

    def arguments(self, layer: Layer) -> dict[str, Any]:
        words = super().arguments(layer)
        if words.get("momentum") is not None:
            words["momentum"] = complement(words["momentum"])
        return words

    def array(self, a: np.ndarray) -> np.ndarray:
        return a

    def pack(self, name: str, layer: Layer) -> Arrays:
        if layer.kind == "weight_norm":
            arrays = torch_weight(name, layer)
            return arrays | ({"scale": arrays["scale"].reshape(())} if settings(layer)["axis"] is None else {})
        if layer.kind == "spectral_norm":
            return torch_weight(name, layer) | torch_vectors(layer)
        counted = {} if layer.stats is None else {"count": np.asarray(updates(name, layer), np.int64)}
        return parameters(layer) | statistics(layer) | counted


def complement(momentum: float) -> float:
    """1 - momentum, in as many digits as its owner wrote: 1 - 0.9 is 0.1."""
    return float(f"{1 - momentum:.15g}")


def out_axes(entries: Mapping[str, Entry]) -> list[int]:
    """The axes of a weight that u may belong to: the first, or the second where a convolution is transposed."""
    weight, u, v = (entries[role] for role in ("weight", "u", "v"))
    size = int(np.prod(weight.shape))
    axes = [a for a in (0, 1)[: len(weight.shape)] if u.shape == (weight.shape[a],)]
    todo = f"It belongs to '{weight.name}' of shape {weight.shape}."
    if not axes:
        same(u, weight.shape[:1], weight, todo)
    same(v, (size // weight.shape[axes[0]],), weight, todo)
    return axes


def singular(arrays: Arrays, axes: list[int]) -> Arrays:
    """The weight in our layout and sigma = u^T W v. Of two axes that fit it is the one for which v points to W^T u."""
    weight, u, v = (arrays[role] for role in ("weight", "u", "v"))
    images = {axis: u @ np.moveaxis(widened(weight), axis, 0).reshape(len(u), -1) for axis in axes}
    dim = max(axes, key=lambda axis: images[axis] @ v / (np.linalg.norm(images[axis]) or 1))
    return {"weight": from_torch(weight, dim), "dim": np.asarray(dim), "sigma": np.asarray(images[dim] @ v)}
