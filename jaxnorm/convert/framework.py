"""Framework: what every reader and writer shares. A framework is mostly tables; what tables cannot say it overrides.

A *role* is what an array is to its layer: scale, bias, mean, var, count, weight, u, sigma, or one of the framework's
(Haiku's hidden sums). A *word* is an argument of the framework's constructor, as one would write it there.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxnorm.convert.entries import Entries, Entry, Keys, Parts, join, split
from jaxnorm.convert.layer import Layer, fail, settings

Arrays = dict[str, np.ndarray]
REQUIRED: Any = object()  # the framework has no default for this word

# What frameworks call our options, where the word is not ours.
OPTIONS = {
    "eps": "epsilon",
    "groups": "num_groups",
    "decay_rate": "momentum",
    "reduction_axes": "axis",
    "n_power_iterations": "n_steps",
    "num_power_iterations": "n_steps",
    "power_iterations": "n_steps",
}


class Framework:
    name: ClassVar[str]
    separators: ClassVar[str]  # of names; the first one joins
    words: ClassVar[Mapping[str, Mapping[str, Any]]]  # kind -> its words and their defaults
    fixed: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # kind -> options that the framework does not let choose
    places: ClassVar[Mapping[str, tuple[Parts, Parts]]]  # role -> what stands before and after a norm's name
    together: ClassVar[tuple[frozenset[str], ...]]  # roles that make running statistics, all of them or none
    numbers: ClassVar[frozenset[str]] = frozenset({"count"})  # roles that may be one number for all features
    own_names: ClassVar[Mapping[str, str]] = {}  # how the framework names layers that their owner did not -> kind
    full_rank: ClassVar[bool] = False  # its arrays have the dimensions of x
    floor: ClassVar[bool] = False  # a spectral norm's epsilon bounds a length; ours is added to its square
    counts: ClassVar[bool] = False  # its updates are counted, by which it debiases or not, whatever the option
    biased: ClassVar[frozenset[str]] = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm"})

    # -- where things are ---------------------------------------------------------------------------------------------

    def norms(self, entries: Entries) -> dict[str, dict[str, Parts]]:
        """Everything that could be a norm: name -> role -> path."""
        found: dict[str, dict[str, Parts]] = {}
        for parts in entries:
            for role, (before, after) in self.places.items():
                middle = parts[len(before) : len(parts) - len(after)]
                if len(parts) >= len(before) + len(after) and parts == (*before, *middle, *after):
                    found.setdefault(join(middle, self.separators[0]), {})[role] = parts
        return found

    def weights(self, entries: Entries) -> dict[str, tuple[str, dict[str, Parts]]]:
        """Weight and spectral norms, which say what they are: "module:weight" -> kind, role -> path."""
        return {}

    def recognize(self, name: str, roles: Iterable[str]) -> str | None:
        """The kind of a norm that nobody named: by its running statistics, or by the framework's own name for it."""
        if any(group.intersection(roles) for group in self.together):
            return "batch_norm"
        last = re.sub(r"_\d+$", "", name.split(self.separators[0])[-1])
        return self.own_names.get(last) if "scale" in roles else None

    def keys(self, kind: str, name: str) -> dict[str, Keys]:
        """role -> the keys that lead to it in a state of this framework."""
        if kind in ("weight_norm", "spectral_norm"):
            return self.weight_keys(kind, *self.module_and_weight(kind, name))
        middle = self.parts(name)
        return {role: self.nested((*before, *middle, *after)) for role, (before, after) in self.places.items()}

    def weight_keys(self, kind: str, module: Parts, weight: Parts) -> dict[str, Keys]:
        """The same for weight and spectral norms."""
        raise NotImplementedError

    def nested(self, parts: Parts) -> Keys:
        """A path as the keys of this framework's states; flat here."""
        return (join(parts, self.separators[0]),)

    def split(self, keys: Keys) -> Parts:
        return split(keys, self.separators)

    def parts(self, name: str) -> Parts:
        return tuple(name.split(self.separators[0])) if name else ()

    def module_and_weight(self, kind: str, name: str) -> tuple[Parts, Parts]:
        module, colon, weight = name.partition(":")
        if not colon:
            todo = "Rename the layer, as the module that normalizes, a colon, and the weight within."
            fail(f"{article(kind)} of {self.name} must be named 'module:weight'", f"'{name}'", todo)
        return self.parts(module), self.parts(weight)

    def weight_name(self, module: Parts, weight: Parts) -> str:
        return f"{join(module, self.separators[0])}:{join(weight, self.separators[0])}"

    # -- what they mean -----------------------------------------------------------------------------------------------

    def check(self, kind: str, name: str, entries: Mapping[str, Entry]) -> None:
        """Parts that belong together are there, and of one shape; each error names the entry."""
        for group in self.together:
            missing = sorted(group - set(entries))
            if missing and len(missing) < len(group):
                there = next(entry.name for role, entry in entries.items() if role in group)
                absent = join(self.keys(kind, name)[missing[0]], self.separators[0])
                fail(f"'{absent}' must be there, since '{there}' is", "no such entry", "Running statistics are whole.")
        if "bias" in entries and kind not in self.biased:
            todo = "Is it a layer_norm? If not, leave the bias out."
            fail(f"{article(kind)} of {self.name} has no bias", f"'{entries['bias'].name}'", todo)
        first = next(entries[role] for role in ("mean", "ema_mean", "scale", "bias") if role in entries)
        for role, entry in entries.items():
            if entry.shape or role not in self.numbers:
                same(entry, first.shape, first, f"All arrays of {article(kind)} describe the same features.")

    def unpack(self, kind: str, name: str, entries: Mapping[str, Entry], words: dict[str, Any]) -> Arrays:
        """Arrays by our roles and in our shapes. May change the words."""
        return {role: entry.array for role, entry in entries.items()}

    def pack(self, name: str, layer: Layer) -> Arrays:
        """Arrays by this framework's roles and in its shapes."""
        raise NotImplementedError

    def array(self, a: np.ndarray) -> Any:
        """An array as this framework's states hold them."""
        return jnp.asarray(a)

    def options(self, kind: str, words: dict[str, Any], scale: np.ndarray | None) -> dict[str, Any]:
        """The options that words mean."""
        options = {OPTIONS.get(word, word): value for word, value in words.items()}
        return options | ({"epsilon": options["epsilon"] ** 2} if self.floor and kind == "spectral_norm" else {})

    def arguments(self, layer: Layer) -> dict[str, Any]:
        """The words of this framework for a layer's options."""
        options = settings(layer)
        named = {word: OPTIONS.get(word, word) for word in self.words[layer.kind]}
        if self.floor and layer.kind == "spectral_norm":
            options["epsilon"] **= 0.5
        return {word: options[option] for word, option in named.items() if option in options}

    def carried(self, layer: Layer) -> dict[str, Any]:
        """Options that go without a word: fixed in this framework, or said by the arrays themselves."""
        options = dict(self.fixed.get(layer.kind, {}))
        if layer.kind in ("layer_norm", "rms_norm"):
            options["axis"] = trailing(1 if layer.scale is None else layer.scale.ndim)
        if layer.kind == "weight_norm":
            options["axis"] = layer.options.get("axis")
        if self.counts and layer.stats is not None:
            options["debias"] = settings(layer)["debias"]
        return options


def trailing(n: int) -> int | tuple[int, ...]:
    """The last n axes, as `axis` is written: -1 for one."""
    return -1 if n <= 1 else tuple(range(-n, 0))


def same(entry: Entry, shape: tuple[int, ...], like: Entry, todo: str) -> None:
    if entry.shape != shape:
        label = re.split(r"[./]", like.name)[-1]
        fail(f"'{entry.name}' must have shape {shape}, like {label}", f"{entry.shape}", todo)


def parameters(layer: Layer) -> Arrays:
    """The scale and bias that a layer has."""
    return {role: a for role, a in (("scale", layer.scale), ("bias", layer.bias)) if a is not None}


def statistics(layer: Layer) -> Arrays:
    """The running mean and variance that a layer has."""
    return {} if layer.stats is None else {"mean": np.asarray(layer.stats.mean), "var": np.asarray(layer.stats.var)}


def updates(name: str, layer: Layer) -> int:
    """How often all features were updated, as one number."""
    assert layer.stats is not None
    count = np.unique(np.asarray(layer.stats.count))
    if len(count) != 1:
        got = f"counts from {count.min():g} to {count.max():g}"
        fail(f"'{name}' must have been updated equally often in all features", got, "Give them one count.")
    return int(count[0])


def article(kind: str) -> str:
    return f"{'an' if kind[0] in 'ir' else 'a'} {kind}"
