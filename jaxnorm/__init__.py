"""Normalization layers for JAX: pure functions, explicit state."""

from jaxnorm.decay import decay_mask
from jaxnorm.moments import Moments, merge, merge_over, moments
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.group import group_norm, instance_norm
from jaxnorm.norms.layer import layer_norm, rms_norm
from jaxnorm.norms.weight import SpectralState, spectral_norm, weight_norm
from jaxnorm.running import RunningStats, blend, recalibrate
from jaxnorm.standardize import modulate, normalize, standardize

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "RunningStats",
    "SpectralState",
    "batch_norm",
    "blend",
    "decay_mask",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "merge",
    "merge_over",
    "modulate",
    "moments",
    "normalize",
    "recalibrate",
    "rms_norm",
    "spectral_norm",
    "standardize",
    "weight_norm",
]
