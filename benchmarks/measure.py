"""From a case to rows of numbers. One row is one contender in one mode; times are also ratios to jaxnorm's."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import memory, modes
from benchmarks.contenders import JAX, Contender, copied
from benchmarks.shapes import Case
from benchmarks.timing import interleaved, quantiles, ratios

Row = dict[str, Any]
COPY = "copy of the same bytes"
MODEL = "between two products"


def about(case: Case, dtype: str, mode: str) -> Row:
    return {"norm": case.norm, "model": case.model, "shape": case.shape, "dtype": dtype, "mode": mode}


def timed(calls: dict[str, Callable], case: Case, dtype: str, mode: str, rounds: int) -> list[Row]:
    first, second, faults = interleaved(calls, rounds)
    relative, relative_first = ratios(second, "jaxnorm"), ratios(first, "jaxnorm")
    return [
        about(case, dtype, mode)
        | {"contender": name, "seconds": quantiles(second[name]), "ratio": relative[name]}
        | {"first_seconds": quantiles(first[name]), "first_ratio": relative_first[name]}
        | {"page_faults": float(np.median(faults[name]))}
        for name in calls
    ]


def contenders(case: Case, dtype: str, names: list[str]) -> dict[str, Contender]:
    made = {name: JAX[name](case, dtype) for name in names if name in JAX}
    return {name: contender for name, contender in made.items() if contender is not None}


def norm_rows(case: Case, dtype: str, names: list[str], rounds: int) -> Iterator[Row]:
    """Forward, and forward and backward, of everybody."""
    found = contenders(case, dtype, names)
    copy = copied(case, dtype)
    for mode, prepare in modes.JITTED.items():
        programs = {name: prepare(contender) for name, contender in found.items()}
        calls = {name: modes.jitted(*program) for name, program in programs.items()}
        for name in (name for name in names if name.startswith("torch")):
            from benchmarks.torch_contender import torch_call, torch_norm

            calls[name] = torch_call(torch_norm(case, dtype), mode, compile=name == "torch.compile")
        if mode == "forward":
            calls[COPY] = modes.jitted(lambda a: -a, (copy,))
        for row in timed(calls, case, dtype, mode, rounds):
            name = row["contender"]
            if name in programs:
                row |= memory.compiled(programs[name][0], *programs[name][1])
                if mode == "forward+backward":
                    row["residual_bytes"] = memory.residual_bytes(found[name])
            yield row


CALLED_AS_HERE = ("jaxnorm", "jaxnorm on XLA", "Flax Linen", "jax.nn.standardize", "jnp formula")


def eager_rows(case: Case, dtype: str, names: list[str], rounds: int) -> Iterator[Row]:
    """Calls outside jit, as in a notebook or a test; not of objects that this benchmark would make for every call.

    In many rounds: a call takes microseconds, and the first fifty or so take two to four times as long.
    """
    found = contenders(case, dtype, [name for name in names if name in CALLED_AS_HERE])
    yield from timed({name: modes.eager(c) for name, c in found.items()}, case, dtype, "eager call", 10 * rounds)


def preparation_rows(case: Case, dtype: str, names: list[str], rounds: int) -> Iterator[Row]:
    """Trace and lower the gradient of 24 layers, in turn; compile it once, since some take half a minute."""
    found = contenders(case, dtype, names)
    seconds = {mode: {name: [] for name in found} for mode in ("trace", "lower", "compile")}
    for i in range(max(1, rounds // 12)):
        for name, contender in found.items():
            for mode, value in modes.preparation(contender, compile=i == 0).items():
                seconds[mode][name].append(value)
    for mode, of in seconds.items():
        arrays = {name: np.array(values) for name, values in of.items()}
        relative = ratios(arrays, "jaxnorm")
        for name, values in arrays.items():
            row = {"contender": name, "seconds": quantiles(values), "ratio": relative[name]}
            yield about(case, dtype, f"{mode} the gradient of {modes.LAYERS}") | row


def model_rows(case: Case, dtype: str, names: list[str], rounds: int) -> Iterator[Row]:
    """Gradients of the norm between two products, jitted whole; in fewer rounds, since products take long."""
    found = contenders(case, dtype, names)
    found = {name: c for name, c in found.items() if c.x.shape == case.shape}  # the products have features last
    programs = {name: modes.in_model(c, case) for name, c in found.items()}
    calls = {name: modes.jitted(*program) for name, program in programs.items()}
    for row in timed(calls, case, dtype, MODEL, max(1, rounds // 4)):
        function, args = programs[row["contender"]]
        yield row | memory.compiled(function, *args)


def scan_rows(case: Case, dtype: str, names: list[str], rounds: int) -> Iterator[Row]:
    """Temporary memory of eight scanned blocks; nothing is run."""
    for name in names:
        if name in JAX and JAX[name](case, dtype) is not None:
            temporary = memory.scan_of_blocks(JAX[name], case, dtype)
            yield about(case, dtype, "scan of 8 blocks") | {"contender": name, "temporary_bytes": temporary}
