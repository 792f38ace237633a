"""read: every norm in a state, and what else there was."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from jaxnorm.convert.entries import Entries, Entry, Parts, flatten, is_array
from jaxnorm.convert.framework import Framework, trailing
from jaxnorm.convert.frameworks import framework_of
from jaxnorm.convert.layer import Layer, fail
from jaxnorm.convert.told import Norms, Told
from jaxnorm.convert.weights import widened
from jaxnorm.norms.weight import SpectralState
from jaxnorm.running import RunningStats

AMBIGUOUS = "may be a norm: name its kind in `norms`"


class Found(NamedTuple):
    """What `read` returns.

    Args:
      layers: name -> Layer, in the order of the state.
      left: name -> why, for every entry that is in no layer: "no norm", "no array", or that it may be one.
    """

    layers: dict[str, Layer]
    left: dict[str, str]


def read(framework: str, state: Mapping[Any, Any], norms: Norms | None = None) -> Found:
    """Every norm in a state of another framework.

    Recognized without help: running statistics (a batch norm; an instance norm that tracks them looks the same, and
    infers the same: name it if you train on), weight and spectral norm, and layers under the framework's own names
    (`LayerNorm_0` in Linen, `layer_norm` in Haiku, `layer_normalization` in Keras). A lone scale, with or without a
    bias, is otherwise left alone until you name its kind.

    Args:
      framework: "torch", "flax" (Linen variables), "nnx", "haiku", "equinox" or "keras".
      state: names to arrays, nested or flat; see the top of `jaxnorm.convert` for each framework's. Arrays are whatever
        NumPy can read (NumPy, JAX, torch on the CPU), and are copied.
      norms: name -> what the state does not hold: a kind, or the words of the framework's own constructor, and "kind"
        with them if needed: {"ln*": "layer_norm", "bn1": {"eps": 1e-3, "momentum": 0.01}}. Names are patterns as of a
        shell; the first that matches counts. What is not said is the framework's default.

    Returns:
      Found(layers, left).

    Raises:
      ValueError: a shape that does not fit, a part that is missing, a word that is unknown or has no default, a kind
        that does not fit the entries, a name in `norms` that fits no layer.
      TypeError: an entry of a norm that holds no numbers.

    Example:
      >>> import numpy as np
      >>> from jaxnorm import convert
      >>> state = {"bn.weight": np.ones(4), "bn.bias": np.zeros(4), "bn.running_mean": np.zeros(4),
      ...          "bn.running_var": np.ones(4), "ln.weight": np.ones(4), "fc.weight": np.ones((2, 4))}
      >>> layers, left = convert.read("torch", state, {"bn": {"momentum": 0.01}})
      >>> layers["bn"].kind, layers["bn"].options["momentum"]
      ('batch_norm', 0.99)
      >>> left
      {'ln.weight': 'may be a norm: name its kind in `norms`', 'fc.weight': 'no norm'}
    """
    peer = framework_of(framework)
    entries = flatten(state, peer.separators)
    arrays = {parts: entry for parts, entry in entries.items() if is_array(entry.leaf)}
    told = Told(peer, norms or {})
    candidates = peer.weights(arrays)
    taken = {parts for _, roles in candidates.values() for parts in roles.values()}
    norms_only = peer.norms({parts: entry for parts, entry in arrays.items() if parts not in taken})
    candidates |= {name: (peer.recognize(name, roles), roles) for name, roles in norms_only.items()}

    layers, taken = {}, set()
    for name, (recognized, roles) in candidates.items():
        kind = told.kind(name, recognized, roles)
        if kind is not None:
            parts = {role: arrays[path] for role, path in roles.items()}
            layers[name] = layer_of(peer, kind, name, parts, told.words(name, kind))
            taken |= set(roles.values())
    told.all_used()
    left = {entry.name: _why(peer, arrays, parts) for parts, entry in entries.items() if parts not in taken}
    return Found(layers, left)


def read_layer(framework: str, state: Mapping[Any, Any], kind: str | None = None, **words: Any) -> Layer:
    """One norm, from the state of that module alone.

    Args:
      framework, state: as of `read`, the state of nothing else.
      kind: needed where the state does not tell.
      words: of the framework's own constructor, as of `read`.

    Returns:
      Layer.

    Raises:
      ValueError, TypeError: as `read`; entries that are no part of it.

    Example:
      >>> import numpy as np
      >>> from jaxnorm import convert
      >>> convert.read_layer("keras", {"gamma": np.ones(4), "beta": np.zeros(4)}, "layer_norm", epsilon=1e-5).options
      {'epsilon': 1e-05}
    """
    told = words | ({} if kind is None else {"kind": kind})
    layers, left = read(framework, state, {"*": told} if told else None)
    if left or len(layers) != 1:
        got = f"{len(layers)} and {', '.join(left) or 'nothing'} besides"
        fail("`state` must be that of one norm", got, "Pass `kind` if the state does not tell, or use read.")
    return next(iter(layers.values()))


def layer_of(peer: Framework, kind: str, name: str, parts: dict[str, Entry], words: dict[str, Any]) -> Layer:
    """The layer that these entries make with these words."""
    peer.check(kind, name, parts)
    arrays = peer.unpack(kind, name, parts, words)
    for role in ("scale", "bias", "mean", "var", "weight", "u"):
        if role in arrays and not jnp.issubdtype(arrays[role].dtype, jnp.inexact):
            entry = parts.get(role, next(iter(parts.values())))
            fail(f"'{entry.name}' must be floating", f"{arrays[role].dtype}", "Dequantize it first.", TypeError)
    scale, bias, weight = (arrays.get(role) for role in ("scale", "bias", "weight"))
    stats = spectral = None
    if "mean" in arrays:
        mean, var = widened(arrays["mean"]), widened(arrays["var"])
        count = np.full(mean.shape, arrays.get("count", 0), np.float32)
        stats = RunningStats(*cast(Any, (mean, var, count)))
    if "u" in arrays:
        spectral = SpectralState(*cast(Any, (widened(arrays["u"]), widened(arrays["sigma"]))))
    options = dict(peer.fixed.get(kind, {})) | peer.options(kind, words, scale)
    if kind == "instance_norm" and stats is None:
        options = {"epsilon": options["epsilon"]}
    parameter = bias if scale is None else scale
    if kind in ("layer_norm", "rms_norm") and parameter is not None and parameter.ndim > 1:
        options.setdefault("axis", trailing(parameter.ndim))
    if kind == "group_norm" and parameter is not None and parameter.size % options["num_groups"]:
        rule = f"'{name}' must have features that its {options['num_groups']} groups divide"
        fail(rule, f"{parameter.size}", "State the number of groups in `norms`.")
    return Layer(kind, scale, bias, stats, weight, spectral, int(arrays.get("dim", 0)), options)


def _why(peer: Framework, arrays: Entries, parts: Parts) -> str:
    """Why an entry is in no layer. It may be a norm's if its module has scale and bias alone, and no matrix."""
    if parts not in arrays:
        return "no array"
    for before, after in (peer.places["scale"], peer.places["bias"]):
        if parts[: len(before)] == before and parts[len(parts) - len(after) :] == after:
            module = parts[: len(parts) - len(after)]
            inside = {path: entry for path, entry in arrays.items() if path[: len(module)] == module}
            roles = next(iter(peer.norms(inside).values()))
            matrix = any(path[-1] == "weight" and len(entry.shape) > 1 for path, entry in inside.items())
            if len(roles) == len(inside) and not matrix:
                return AMBIGUOUS
    return "no norm"
