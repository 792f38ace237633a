"""Weights of weight and spectral norm: torch's layout and ours, and one half step of power iteration."""

from collections.abc import Sequence

import numpy as np

from jaxnorm.arguments import wide
from jaxnorm.convert.entries import Entry
from jaxnorm.convert.framework import Arrays
from jaxnorm.convert.layer import Layer, fail, settings


def order(ndim: int, dim: int) -> list[int]:
    """The axes of torch's layout in ours: space, in, and last the features, which torch numbers `dim`."""
    return [a for a in (*range(2, ndim), 0, 1) if a != dim and a < ndim] + [dim]


def from_torch(weight: np.ndarray, dim: int) -> np.ndarray:
    """[out, in, *space] to [*space, in, out]; of a transposed convolution [in, out, *space], and dim is 1."""
    return np.ascontiguousarray(weight.transpose(order(weight.ndim, dim)))


def to_torch(weight: np.ndarray, dim: int) -> np.ndarray:
    """The inverse of `from_torch`."""
    return np.ascontiguousarray(weight.transpose(np.argsort(order(weight.ndim, dim))))


def kept_axis(length: Entry, weight: Entry, *, whole: Sequence[tuple[int, ...]]) -> int | None:
    """Which axis of a weight its lengths belong to; None where there is one length in all, of a shape in `whole`."""
    kept = [tuple(n if a == axis else 1 for a, n in enumerate(weight.shape)) for axis in range(len(weight.shape))]
    if length.shape in kept:
        return kept.index(length.shape)
    if length.shape not in whole:
        rule = f"'{length.name}' must have shape {kept[0] if kept else ()}, one length for each feature"
        todo = f"It belongs to '{weight.name}' of shape {weight.shape}; one length in all has shape {whole[0]}."
        fail(rule, f"{length.shape}", todo)
    return None


def widened(a: np.ndarray) -> np.ndarray:
    return a.astype(wide(a.dtype))


def half_step(w: np.ndarray, u: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """v = n(w u) and sigma = v^T w u, for w [in, out]: what inference computes from u."""
    image = widened(w) @ u
    v = image / np.sqrt(np.sum(np.square(image)) + np.asarray(epsilon, image.dtype))
    return v, np.asarray(v @ image)


def torch_weight(name: str, layer: Layer) -> Arrays:
    """The weight of torch and Equinox, and its lengths with as many axes."""
    assert layer.weight is not None
    weight = to_torch(layer.weight, layer.dim)
    if layer.kind == "spectral_norm":
        return {"weight": weight}
    axis, last = settings(layer)["axis"], tuple(range(weight.ndim - 1))
    if axis is not None and tuple(a % weight.ndim for a in axis) != last:
        got, todo = f"axis={axis} for shape {layer.weight.shape}", "Move the kept axis to the end."
        fail(f"'{name}' must sum over all axes but the last, or over all", got, todo)
    assert layer.scale is not None
    shape = [-1 if axis is not None and a == layer.dim else 1 for a in range(weight.ndim)]
    return {"weight": weight, "scale": layer.scale.reshape(shape)}


def torch_vectors(layer: Layer) -> Arrays:
    """u, and v = n(W^T u) in the order of torch's and Equinox's W."""
    assert layer.spectral is not None
    u = np.asarray(layer.spectral.u)
    out_in = np.moveaxis(torch_weight("", layer)["weight"], layer.dim, 0).reshape(len(u), -1)
    return {"u": u, "v": half_step(out_in.T, u, settings(layer)["epsilon"])[0]}
