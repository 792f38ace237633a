"""Sums that are divided by 1 - momentum^t when they are used: how Haiku and Equinox keep a running average."""

import math

import numpy as np

from jaxnorm.convert.framework import updates
from jaxnorm.convert.layer import Layer, fail, settings


def weight_of(momentum: float, t: int) -> float:
    """1 - momentum^t: how much of a sum of t updates is data."""
    return 1 - momentum**t


def counter(name: str, layer: Layer) -> int:
    """How many updates to claim, so that the other framework goes on as this layer would.

    A debiased average has its true number. A plain one (Flax, torch, Keras) has nothing to debias: a number is claimed
    after which 1 - momentum^t is 1 in float32, unless the true one is as large.
    """
    momentum = averaging(name, layer)
    count = updates(name, layer)
    if settings(layer)["debias"]:
        return count
    return max(count, math.ceil(-26 * math.log(2) / math.log(momentum)) if momentum > 0 else 1)


def averaging(name: str, layer: Layer) -> float:
    """The momentum of a layer, which must be a true moving average."""
    momentum = settings(layer)["momentum"]
    if momentum is None or not 0 <= momentum < 1:
        todo = "Give it one: dataclasses.replace(layer, options={**layer.options, 'momentum': 0.99})."
        fail(f"'{name}' needs a momentum below 1, by which the sums of this framework forget", f"{momentum}", todo)
    return float(momentum)


def scaled(average: np.ndarray, factor: float) -> np.ndarray:
    """Times a factor, rounded once."""
    return (average.astype(np.float64) * factor).astype(average.dtype)
