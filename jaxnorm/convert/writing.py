"""write: layers as the state of a framework, and as its constructors' words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.convert.entries import Entry, Keys, flatten, join, nest, replace
from jaxnorm.convert.framework import OPTIONS, Framework
from jaxnorm.convert.frameworks import framework_of
from jaxnorm.convert.layer import Layer, fail


class Written(NamedTuple):
    """What `write` returns.

    Args:
      state: the framework's names to arrays: NumPy's for torch and Keras, JAX's for the others.
      arguments: layer name -> the words for the framework's constructor. Those of Flax are also for `jaxnorm.linen` and
        `jaxnorm.nnx`; `ddof` and `debias` are for those alone, and given only where they matter.
      lost: layer name -> options for which the framework has no word: there it would train differently (momentum,
        ddof, debias), or differ by a stabilizer (epsilon).
    """

    state: dict
    arguments: dict[str, dict[str, Any]]
    lost: dict[str, dict[str, Any]]


def write(framework: str, layers: Mapping[str, Layer], into: Any = None) -> Written:
    """Layers as the state of a framework.

    Args:
      framework: as of `read`.
      layers: name -> Layer, under the names that the framework's state shall have: rename those of `read` by a dict
        comprehension. Weight and spectral norms are named "module:weight". The name "" is a state of one layer.
      into: a state of a whole model in that framework, as its init makes it. It is returned with the layers' entries
        replaced, which must all be there and of the same shapes but for axes of size one. Haiku's batch norm needs it,
        whose shapes tell how many dimensions x has.

    Returns:
      Written(state, arguments, lost).

    Raises:
      ValueError: a kind that the framework lacks; entries that `into` does not have, or has in another shape, or has
        and the layer lacks; a state that the framework cannot hold.

    Example:
      >>> import numpy as np
      >>> from jaxnorm import convert
      >>> bn = convert.read_layer("torch", {"running_mean": np.zeros(2), "running_var": np.ones(2)}, eps=1e-3)
      >>> state, arguments, lost = convert.write("flax", {"BatchNorm_0": bn})
      >>> state
      {'batch_stats': {'BatchNorm_0': {'mean': Array([0., 0.], dtype=float32), 'var': Array([1., 1.], dtype=float32)}}}
      >>> arguments
      {'BatchNorm_0': {'momentum': 0.9, 'epsilon': 0.001, 'ddof': 1}}
      >>> convert.write("keras", {"bn": bn}).lost
      {'bn': {'ddof': 1}}
    """
    peer = framework_of(framework)
    arrays: dict[Keys, np.ndarray] = {}
    absent: dict[Keys, str] = {}
    arguments, lost = {}, {}
    for name, layer in layers.items():
        check(peer, name, layer, shaped=into is not None)
        packed, keys = peer.pack(name, layer), peer.keys(layer.kind, name)
        arrays |= {keys[role]: array for role, array in packed.items()}
        absent |= {key: name for role, key in keys.items() if role not in packed}
        arguments[name] = peer.arguments(layer)
        said, carried = {OPTIONS.get(word, word) for word in arguments[name]}, peer.carried(layer)
        unsaid = {o: v for o, v in layer.options.items() if o not in said and (o not in carried or carried[o] != v)}
        lost |= {name: unsaid} if unsaid else {}
    final = {keys: peer.array(array) for keys, array in arrays.items()}
    return Written(nest(final) if into is None else fill(peer, into, final, absent), arguments, lost)


def check(peer: Framework, name: str, layer: Layer, *, shaped: bool) -> None:
    """What a framework cannot hold is refused, before anything is written."""
    kind, theirs = layer.kind, f"{peer.name}'s {layer.kind}"
    if kind not in peer.words:
        todo = f"It has {', '.join(peer.words)}: replace the layer's kind, or leave it out."
        fail(f"{peer.name} must have the kind of '{name}'", repr(kind), todo)
    needed = {"weight_norm": ("weight", "scale"), "spectral_norm": ("weight", "spectral")}.get(kind, ())
    for part in needed:
        if getattr(layer, part) is None and not (part == "weight" and peer.name == "haiku"):
            fail(f"'{name}' must have its {part} to be {theirs}", "none", "Give it with dataclasses.replace.")
    if layer.bias is not None and kind not in peer.biased:
        fail(f"{theirs} has no bias", f"one for '{name}'", "Add it outside, and drop it with dataclasses.replace.")
    if layer.stats is not None and kind == "instance_norm" and "momentum" not in peer.words[kind]:
        fail(f"{theirs} keeps no statistics", f"some for '{name}'", "For inference make its kind batch_norm.")
    if not needed:
        given = {"scale": layer.scale, "bias": layer.bias, **(layer.stats._asdict() if layer.stats else {})}
        shapes = {part: np.shape(value) for part, value in given.items() if value is not None}
        if len(set(shapes.values())) > 1:
            got = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
            fail(f"all arrays of '{name}' must have one shape", got, "They describe the same features.")
        full_rank = layer.stats is not None or any(len(shape) > 1 for shape in shapes.values())
        if peer.full_rank and full_rank and not shaped:
            todo = "Pass `into`, the state of a model as its init makes it."
            fail(f"'{name}' must be given the dimensions of x, which {peer.name} keeps", "into=None", todo)


def fill(peer: Framework, into: Any, arrays: Mapping[Keys, Any], absent: Mapping[Keys, str]) -> Any:
    """A whole state with these arrays in place of its own."""
    entries = flatten(into, peer.separators)
    for keys, name in absent.items():
        if peer.split(keys) in entries:
            entry = entries[peer.split(keys)].name
            fail(f"'{name}' must have what `into` has", f"nothing for '{entry}'", "It would keep its initial value.")
    new = {}
    for keys, array in arrays.items():
        parts, name = peer.split(keys), join(keys, peer.separators[0])
        if parts not in entries:
            fail("`into` must have every entry of the layers", f"no '{name}'", "Rename the layer as the model does.")
        new[parts] = _reshaped(array, entries[parts])
    return replace(into, new, peer.separators)


def _reshaped(array: Any, entry: Entry) -> Any:
    if [n for n in array.shape if n != 1] != [n for n in entry.shape if n != 1]:
        todo = "It is not the same layer, or not of the same size."
        fail(f"'{entry.name}' must have shape {entry.shape}, as in `into`", f"{tuple(array.shape)}", todo)
    return array.reshape(entry.shape)
