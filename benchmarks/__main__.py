"""Time of every norm beside Flax Linen's, on shapes of real models, and what reverse mode keeps in memory.

    python -m benchmarks [--quick] [--norm layer_norm] [--dtype bfloat16] [--output runs/benchmarks]

Both libraries run in one process, call by call in turn, jitted; the ratio of each pair of calls is taken before any
quantile, so that a busy moment of the machine hits both. Extra: `bench`.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxnorm as jn

SHAPES = {  # of activations that fit the caches or nearly so: larger outputs measure the kernel's page faults
    "layer_norm": {"ViT-B, 8 images": (1576, 768), "GPT-2, 1024 tokens": (1024, 768)},
    "rms_norm": {"Llama 8B, 256 tokens": (256, 4096), "Llama 8B, 512 tokens": (512, 4096)},
    "batch_norm": {"ResNet-50 stage 2": (8, 28, 28, 128), "small MLP": (256, 1024)},
    "group_norm": {"U-Net": (8, 32, 32, 128)},
    "instance_norm": {"style transfer": (4, 64, 64, 32)},
}
FLAX = {
    "layer_norm": lambda dtype: nn.LayerNorm(dtype=dtype),
    "rms_norm": lambda dtype: nn.RMSNorm(dtype=dtype),
    "batch_norm": lambda dtype: nn.BatchNorm(use_running_average=False, dtype=dtype),
    "group_norm": lambda dtype: nn.GroupNorm(num_groups=32, dtype=dtype),
    "instance_norm": lambda dtype: nn.InstanceNorm(dtype=dtype),
}


def ours(norm: str) -> Callable:
    function = getattr(jn, norm)
    if norm == "batch_norm":
        return lambda x, p: function(x, jn.RunningStats.init(x.shape[-1]), **p, training=True)
    return lambda x, p: function(x, **p, **({"num_groups": 32} if norm == "group_norm" else {}))


def theirs(norm: str, x: jax.Array) -> Callable:
    module = FLAX[norm](x.dtype)
    state = {k: v for k, v in module.init(jax.random.key(0), x).items() if k != "params"}
    return lambda x, p: module.apply({"params": p, **state}, x, mutable=list(state))


def forward_and_backward(f: Callable) -> Callable:
    def run(x, p, dy):
        y, pull, *_ = jax.vjp(lambda x, p: first(f(x, p)), x, p)
        return y, pull(dy)

    return run


def first(result):
    return result[0] if isinstance(result, tuple) else result


def residual_bytes(f: Callable, x: jax.Array, p: dict) -> int:
    """Bytes that reverse mode keeps beyond the input and the parameters."""
    leaves = jax.tree.leaves(jax.vjp(lambda x, p: first(f(x, p)), x, p)[1])
    return max(0, sum(a.nbytes for a in leaves) - sum(a.nbytes for a in (x, *p.values())))


def compare(a: Callable, b: Callable, args: tuple, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = jax.jit(a), jax.jit(b)
    times = np.zeros((2, repeats))
    for i in range(-3, repeats):  # three rounds warm up
        for row, f in enumerate((a, b)):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            if i >= 0:
                times[row, i] = time.perf_counter() - start
    return times[0], times[1]


def measure(norm: str, model: str, shape: tuple[int, ...], dtype: str, repeats: int) -> list[dict]:
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    p = {"scale": jnp.ones(shape[-1]), "bias": jnp.zeros(shape[-1])}
    if norm == "rms_norm":
        del p["bias"]
    pair = ours(norm), theirs(norm, x)
    rows = []
    for mode, wrap, args in (("forward", lambda f: f, (x, p)), ("forward+backward", forward_and_backward, (x, p, dy))):
        a, b = compare(*map(wrap, pair), args, repeats)
        low, middle, high = np.quantile(b / a, (0.25, 0.5, 0.75))
        row = {"norm": norm, "model": model, "shape": shape, "dtype": dtype, "mode": mode}
        row |= {"ms": np.median(a) * 1e3, "flax_ms": np.median(b) * 1e3}
        row |= {"ratio": middle, "ratio_25": low, "ratio_75": high}
        row |= {f"{who}residual_bytes": residual_bytes(f, x, p) for who, f in zip(("", "flax_"), pair, strict=True)}
        rows.append(row)
    return rows


def report(rows: list[dict]) -> Table:
    table = Table(title="time and reverse-mode memory; a ratio above 1: jaxnorm is faster")
    for column in ("norm", "model", "dtype", "mode", "ms", "Flax / jaxnorm (quartiles)", "kept, B/element", "Flax's"):
        table.add_column(column, justify="left" if column in ("norm", "model", "dtype", "mode") else "right")
    for r in rows:
        ratio = f"{r['ratio']:.2f} ({r['ratio_25']:.2f} to {r['ratio_75']:.2f})"
        kept = (f"{r[k] / np.prod(r['shape']):.2f}" for k in ("residual_bytes", "flax_residual_bytes"))
        table.add_row(r["norm"], r["model"], r["dtype"], r["mode"], f"{r['ms']:.2f}", ratio, *kept)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--norm", choices=SHAPES, action="append", help="only this norm; may be repeated")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="only this dtype")
    parser.add_argument("--repeats", type=int, default=60, help="timed calls of each (default 60)")
    parser.add_argument("--quick", action="store_true", help="five repeats: does it run?")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder for results.json")
    options = parser.parse_args()
    work = [
        (norm, model, shape, dtype)
        for norm, shapes in SHAPES.items()
        for model, shape in shapes.items()
        for dtype in options.dtype or ("float32", "bfloat16")
        if norm in (options.norm or SHAPES)
    ]
    rows: list[dict] = []
    for item in track(work, description="measuring"):
        rows += measure(*item, repeats=5 if options.quick else options.repeats)
    Console(width=140).print(report(rows))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"device": str(jax.devices()[0]), "versions": versions, "jaxnorm": jn.__version__, "rows": rows}
    (options.output / "results.json").write_text(json.dumps(result, indent=1, default=float))


if __name__ == "__main__":
    main()
