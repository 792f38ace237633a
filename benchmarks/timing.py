"""Times of rival functions, taken in turn in one process, so that a busy moment of the machine hits all of them.

What is compared are ratios within a round, in which everybody has a turn, in an order that is drawn anew. A turn is two
calls. The first finds the caches full of others' numbers; the second, as a loop does, its own.
"""

import contextlib
import ctypes
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

QUANTILES = (0.2, 0.5, 0.8)


def keep_memory() -> None:
    """Freed memory stays with the process, as far as glibc can be told. It would give large arrays back to the system
    after every call, and what is then measured is how fast the kernel maps pages. Where that remains it is counted."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of glibc alone; elsewhere page faults are counted
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1)  # M_ARENA_MAX: what one thread frees another finds
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int, seed: int = 0) -> tuple[dict[str, np.ndarray], ...]:
    """Seconds of everybody's first and second call, in every round, and the page faults of the second: pages of 4 KiB
    that were not there before. A call returns when its work is done."""
    rng, names = np.random.default_rng(seed), list(calls)
    first, second, faults = ({name: np.zeros(rounds) for name in names} for _ in range(3))
    for i in range(-3, rounds):  # three rounds warm up
        for name in rng.permutation(names):
            for seconds in (first, second):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                start = time.perf_counter()
                result = calls[name]()
                stop = time.perf_counter()
                after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                del result  # its memory is there for the next one
                if i >= 0:
                    seconds[name][i], faults[name][i] = stop - start, after - before
    return first, second, faults


def quantiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, QUANTILES).tolist()


def ratios(seconds: dict[str, np.ndarray], base: str) -> dict[str, list[float]]:
    """Everybody's time over that of `base`, round by round; then quantiles."""
    return {name: quantiles(values / seconds[base]) for name, values in seconds.items()}
