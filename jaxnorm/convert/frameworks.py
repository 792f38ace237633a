"""The frameworks by name."""

from jaxnorm.convert.equinox import Equinox
from jaxnorm.convert.flax import Linen, Nnx
from jaxnorm.convert.framework import Framework
from jaxnorm.convert.haiku import Haiku
from jaxnorm.convert.keras import Keras
from jaxnorm.convert.layer import fail
from jaxnorm.convert.torch import Torch

FRAMEWORKS = {framework.name: framework for framework in (Torch(), Linen(), Nnx(), Haiku(), Equinox(), Keras())}


def framework_of(name: str) -> Framework:
    if name not in FRAMEWORKS:
        fail("`framework` must be one that is known", repr(name), f"Known: {', '.join(FRAMEWORKS)}.")
    return FRAMEWORKS[name]
