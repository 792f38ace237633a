"""The compiled kernels: whether they are here, whether they fit, and their registration with XLA.

Everything is checked before the library is opened, since what goes wrong later takes the process along: a truncated
file, a stale one, or an interface newer than jaxlib's, whose refused registration ends JAX's CPU backend. A library
that should serve and cannot is reported once, with what to do; the norms work without it.
"""

import ctypes
import functools
import os
import platform
import threading
import warnings
from pathlib import Path
from types import ModuleType

import jax

SWITCH = "JAXNORM_KERNELS"
TARGETS = [f"jaxnorm_{shape}_{direction}" for shape in ("rows", "columns") for direction in ("forward", "backward")]
TARGETS += ["jaxnorm_average"]
AGAIN = "Install jaxnorm again, or run `python -m jaxnorm.kernels.build`."


_LOADING = threading.Lock()


def missing() -> str | None:
    """Why there are no compiled kernels, or None: they are loaded and registered, once, by the first norm."""
    with _LOADING:  # the first two norms may be in two threads
        return _missing()


@functools.cache
def _missing() -> str | None:
    from jaxnorm.kernels import build  # late: `python -m` runs that file, and it should not be here before

    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise ValueError(f"{SWITCH}: must be 'on' or 'off'; got {switch!r}. Unset it, or switch the kernels off.")
    if switch == "off":
        return f"switched off by the environment ({SWITCH}=off)"
    if not build.LIBRARY.exists():
        return f"not built when jaxnorm was installed: no C++ compiler, one that failed, or no headers of XLA. {AGAIN}"
    reason = _misfit(build) or _register(build.LIBRARY)
    if reason:
        warnings.warn(f"jaxnorm: {build.LIBRARY} is not used: {reason}. {AGAIN}", RuntimeWarning, stacklevel=3)
    return reason


def _misfit(build: ModuleType) -> str | None:
    """What speaks against the library, from its record alone."""
    record = build.recorded()
    if not {"source", "library", "ffi", "machine"} <= record.keys():
        return f"its record {build.RECORD.name} cannot be read"
    source, library, ffi, machine = (record[key] for key in ("source", "library", "ffi", "machine"))
    if source != build.digest(build.SOURCE):
        return f"it is stale, compiled from another {build.SOURCE.name} than the one beside it"
    if library != build.digest(build.LIBRARY):
        return "its file is damaged, not the one that was compiled"
    if machine != platform.machine():
        return f"it was compiled for {machine}, this is {platform.machine()}"
    try:
        runtime = build.ffi_version(build.headers())
    except build.CannotBuild as error:
        return f"it cannot be compared with jaxlib: {error}"
    if ffi[0] != runtime[0] or ffi[1] > runtime[1]:
        return f"it was compiled for XLA's FFI {ffi[0]}.{ffi[1]}, jaxlib has {runtime[0]}.{runtime[1]}"
    return None


def _register(path: Path) -> str | None:
    try:
        library = ctypes.CDLL(str(path))
        capsules = {target: jax.ffi.pycapsule(getattr(library, target)) for target in TARGETS}
    except (OSError, AttributeError) as error:
        return f"it does not load ({error})"
    for target, capsule in capsules.items():
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return None
