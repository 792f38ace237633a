"""Normalization layers for JAX: pure functions, explicit state."""

from jaxnorm.decay import decay_mask
from jaxnorm.kernels import implementations
from jaxnorm.moments import Moments, merge, merge_over, moments
from jaxnorm.norms.adaptive import adaptive_instance_norm
from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.center import mean_only_batch_norm
from jaxnorm.norms.domain import domain_batch_norm
from jaxnorm.norms.dynamic import dynamic_erf, dynamic_tanh
from jaxnorm.norms.evo import evo_norm_b0, evo_norm_s0
from jaxnorm.norms.group import group_norm, instance_norm
from jaxnorm.norms.layer import layer_norm, rms_norm
from jaxnorm.norms.renorm import batch_renorm
from jaxnorm.norms.residual import add_layer_norm, add_rms_norm
from jaxnorm.norms.response import filter_response_norm, global_response_norm, local_response_norm
from jaxnorm.norms.unit import lp_normalize
from jaxnorm.norms.weight import SpectralState, spectral_norm, weight_norm, weight_standardize
from jaxnorm.norms.whiten import WhiteningStats, whiten
from jaxnorm.running import RunningStats, blend, recalibrate
from jaxnorm.standardize import modulate, normalize, standardize

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "RunningStats",
    "SpectralState",
    "WhiteningStats",
    "adaptive_instance_norm",
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "batch_renorm",
    "blend",
    "decay_mask",
    "domain_batch_norm",
    "dynamic_erf",
    "dynamic_tanh",
    "evo_norm_b0",
    "evo_norm_s0",
    "filter_response_norm",
    "global_response_norm",
    "group_norm",
    "implementations",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "lp_normalize",
    "mean_only_batch_norm",
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
    "weight_standardize",
    "whiten",
]
