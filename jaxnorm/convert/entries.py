"""Entries: a state seen as one table from paths to arrays, however it is nested, and the way back."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.convert.layer import fail

Parts = tuple[str, ...]  # a path, split at every separator: the same for nested and flat states
Keys = tuple[Hashable, ...]  # the keys that lead to an entry, one for each level of nesting


class Entry(NamedTuple):
    name: str  # as its owner wrote it, for messages and reports
    leaf: Any

    @property
    def array(self) -> np.ndarray:
        """A copy: frameworks share memory with their checkpoints, and train on."""
        try:
            array = np.asarray(self.leaf).copy()
        except (TypeError, RuntimeError) as error:
            todo = "Convert it first: x.detach().float().numpy(), for example."
            raise TypeError(f"convert: '{self.name}' must turn into a NumPy array; got {error}. {todo}") from error
        if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != np.bool_:
            fail(f"'{self.name}' must hold numbers", f"dtype {array.dtype}", "Leave it out of `norms`.", TypeError)
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.leaf))


Entries = dict[Parts, Entry]


def split(keys: Keys, separators: str) -> Parts:
    """Every key cut at the separators; a key may be a tuple (NNX) or a number."""
    parts: list[str] = []
    for key in keys:
        for piece in key if isinstance(key, tuple) else (key,):
            text = str(piece)
            for separator in separators[1:]:
                text = text.replace(separator, separators[0])
            parts += text.split(separators[0])
    return tuple(parts)


def join(keys: Keys, separator: str) -> str:
    return separator.join(join(key, separator) if isinstance(key, tuple) else str(key) for key in keys)


def flatten(state: Any, separators: str) -> Entries:
    """All arrays of a state. What has no array's shape (None, a random key) is an entry too, but nobody's."""
    entries: Entries = {}
    for keys, leaf in _leaves(state, ()):
        parts, name = split(keys, separators), join(keys, separators[0])
        if parts in entries:
            fail("every entry must have its own path", f"'{entries[parts].name}' and '{name}'", "Rename one of them.")
        entries[parts] = Entry(name, leaf)
    return entries


def _leaves(node: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        if node is not None:
            yield keys, node
        return
    for key, child in children:
        yield from _leaves(child, (*keys, key))


def is_array(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and not (isinstance(leaf, jax.Array) and jnp.issubdtype(dtype, jax.dtypes.prng_key))


def nest(arrays: Mapping[Keys, Any]) -> dict:
    """The nested dict whose arrays have these keys."""
    tree: dict = {}
    for (*path, last), array in arrays.items():
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def replace(node: Any, arrays: Mapping[Parts, Any], separators: str, keys: Keys = ()) -> Any:
    """The same nesting with other arrays at these paths."""
    if isinstance(node, Mapping):
        return {key: replace(child, arrays, separators, (*keys, key)) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        children = [replace(child, arrays, separators, (*keys, i)) for i, child in enumerate(node)]
        return tuple(children) if isinstance(node, tuple) else children
    return arrays.get(split(keys, separators), node)
