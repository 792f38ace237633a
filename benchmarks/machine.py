"""What a number was measured with."""

import contextlib
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax

PACKAGES = {
    "Flax Linen": ["flax"],
    "Flax NNX": ["flax"],
    "Haiku": ["dm-haiku"],
    "Equinox": ["equinox"],
    "torch": ["torch"],
    "torch.compile": ["torch"],
}


def processor() -> str:
    with contextlib.suppress(OSError):  # Linux knows more
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return platform.processor() or platform.machine()


def described(libraries: list[str]) -> dict:
    device = jax.devices()[0]
    packages = dict.fromkeys(["jax", "jaxlib", "jaxnorm", *(p for name in libraries for p in PACKAGES.get(name, []))])
    return {
        "device": device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} cores of {processor()}",
        "platform": device.platform,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": time.strftime("%B %Y"),
    }
