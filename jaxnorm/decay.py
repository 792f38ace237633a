"""Weight decay and norms: which parameters an optimizer should leave alone."""

from typing import Any

import jax

# Scales, shifts and biases, by the names that Flax, Keras, Haiku and hand-written models give them, and what else norms
# learn.
SPARED = frozenset({"scale", "scales", "bias", "offset", "shift", "gamma", "beta", "b"})
SPARED |= {"alpha", "epsilon", "gain", "threshold"}
# Keys that wrap one array and say nothing of it: Flax's boxes for metadata and for NNX variables.
BOXES = frozenset({"value", "raw_value"})


def decay_mask(params: Any) -> Any:
    """Which parameters weight decay should shrink: all but the scales and biases of norms, and other biases.

    The rule: a leaf is spared if the last word of its own name is scale, scales, bias, offset, shift, gamma, beta, b,
    alpha, epsilon, gain or threshold; words are parted by `_`, `/` and `.`. A leaf without a name (an element of a
    list) decays. Dimensions do not matter: the scale of a layer norm over two axes is spared, a kernel with one
    dimension is not.

    Args:
      params: any tree of arrays: Linen's `params`, an NNX state, dicts, named tuples.

    Returns:
      A tree of the same structure with True where decay applies, as optax takes for `mask`. So is the function itself:
      `optax.adamw(1e-3, mask=jn.decay_mask)`.

    Raises:
      Nothing: any tree has names or none.

    Why: decay pulls weights towards zero, which is no natural place for a scale; at the end of a residual branch it
    shrinks the whole branch.

    Example:
      >>> import jax.numpy as jnp, jaxnorm as jn
      >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
      >>> jn.decay_mask(params)
      {'dense': {'bias': False, 'kernel': True}, 'norm': {'scale': False}}

    Reference: Goyal et al. 2017, arXiv:1706.02677, section 5.3 (no decay on batch norm's scale and shift).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _last_word(path) not in SPARED, params)


def _last_word(path: tuple[Any, ...]) -> str:
    names = [name for name in map(_name, path) if name is not None]
    while len(names) > 1 and names[-1] in BOXES:
        names.pop()
    if {"scales", "gains"} & {*names[:-1]}:  # of NNX's wrappers of weights: the last name is that of the weight
        return "scale"
    own = path and (_name(path[-1]) is not None)
    return names[-1].replace("/", "_").replace(".", "_").split("_")[-1].lower() if own else ""


def _name(key: Any) -> str | None:
    name = getattr(key, "key", getattr(key, "name", None))
    if isinstance(name, tuple):  # a flat tree's path, or the weight that an NNX wrapper keeps a scale for
        name = name[-1] if name else None
    return name if isinstance(name, str) else None
