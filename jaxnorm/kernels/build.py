"""Compile cpu.cc. Run by pip when the package is built, editable or not, and by hand:

    python -m jaxnorm.kernels.build [--sanitize] [--only baseline]

The library lies beside its source, as does the record of what it was compiled from. It needs XLA's headers, which
jaxlib brings, and g++ or clang++; it uses no Python headers, so one library serves every Python. `pyproject.toml` pins
the oldest supported jaxlib for the build: a newer one runs what was built against it, but not the other way round.
Where something is missing nothing is built, and JAX's own compiler does all the work.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MACHINE = platform.machine()
# Not .so: Python would take it for a module.
SOURCE, LIBRARY, RECORD = (FOLDER / f"cpu.{ending}" for ending in ("cc", "lib", "json"))
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
# For one kind of processor alone, to be tested on a newer one.
ONLY = {
    "baseline": ["-DJAXNORM_BASELINE"],
    "avx512": ["-DJAXNORM_BASELINE", "-DJAXNORM_BYTES=64", "-march=x86-64-v4"],
    "avx2": ["-DJAXNORM_BASELINE", "-DJAXNORM_BYTES=32", "-march=x86-64-v3"],
}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]


class CannotBuild(Exception):
    """Says what is missing."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ffi_version(include: Path) -> list[int]:
    """Of XLA's foreign function interface, as its headers say."""
    text = (include / "xla/ffi/api/c_api.h").read_text()
    return [int(number) for number in re.findall(r"^#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)$", text, re.MULTILINE)]


def headers() -> Path:
    spec = importlib.util.find_spec("jaxlib")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (include := Path(folder, "include")).joinpath("xla/ffi/api/ffi.h").exists():
            return include
    raise CannotBuild("XLA's headers were not found beside jaxlib")


def compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise CannotBuild("no C++ compiler was found (tried $CXX, g++, clang++)")


def recorded() -> dict[str, Any]:
    """What the library beside the source was compiled from; empty if there is no word of it."""
    try:
        return dict(json.loads(RECORD.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def build(*options: str) -> None:
    """Compile with further options, unless the library that is there is the one that would come out."""
    include, cxx = headers(), compiler()
    recipe = {"source": digest(SOURCE), "ffi": ffi_version(include), "flags": [*FLAGS, *options], "machine": MACHINE}
    if recorded() == {**recipe, "library": LIBRARY.exists() and digest(LIBRARY)}:
        return
    # Beside its place, then into it at once: somebody may be running the old one.
    fresh = FOLDER / f"cpu.{os.getpid()}.lib"
    try:
        command = [cxx, *recipe["flags"], "-isystem", include, SOURCE, "-o", fresh]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise CannotBuild(f"{cxx} failed:\n{done.stderr}")
        RECORD.write_text(json.dumps({**recipe, "library": digest(fresh)}, indent=1) + "\n")
        fresh.replace(LIBRARY)
    finally:
        fresh.unlink(missing_ok=True)


def get_build_hook() -> type:
    """What hatchling looks for when a wheel is built."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class Kernels(BuildHookInterface):
        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            try:
                build()
            except CannotBuild as missing:
                self.app.display_warning(f"jaxnorm without its CPU kernels: {missing}")
                return
            system = sysconfig.get_platform().replace("universal2", MACHINE)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{re.sub(r'[-.]', '_', system)}"
            build_data["artifacts"] += [f"/jaxnorm/kernels/{path.name}" for path in (LIBRARY, RECORD)]

    return Kernels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile the CPU kernels, beside their source.")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("--only", choices=ONLY, help="for such processors, whatever this one is")
    chosen = parser.parse_args()
    try:
        build(*(SANITIZERS if chosen.sanitize else []), *ONLY.get(chosen.only, []))
    except CannotBuild as missing:
        sys.exit(f"jaxnorm.kernels.build: {missing}")
