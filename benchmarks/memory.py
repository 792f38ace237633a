"""What a norm costs besides time: bytes that XLA says it moves, memory it takes, and what reverse mode keeps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.shapes import Case

DEPTH, WIDTH = 8, 512


def compiled(function: Callable, *args) -> dict[str, float]:
    """By XLA's own account, of the compiled program."""
    program = jax.jit(function).lower(*args).compile()
    costs, memory = program.cost_analysis() or {}, program.memory_analysis()
    return {"bytes_accessed": costs.get("bytes accessed", 0.0), "temporary_bytes": memory.temp_size_in_bytes}


def residual_bytes(contender: Contender) -> int:
    """What reverse mode keeps beyond x and the parameters."""
    function, x, _, parameters, state = contender
    pull = jax.vjp(lambda x, p: function(x, p, state)[0], x, parameters)[1]
    kept, own = (sum(a.nbytes for a in jax.tree.leaves(tree)) for tree in (pull, (x, parameters)))
    return max(0, kept - own)


def scan_of_blocks(make: Callable[[Case, str], Contender], case: Case, dtype: str) -> int:
    """Temporary bytes of the gradient through eight blocks of norm and perceptron, scanned, as a transformer is."""
    function, x, _, parameters, state = make(case, dtype)
    width = case.features
    rng = np.random.default_rng(1)
    weights = [jnp.asarray(rng.normal(0, s**-0.5, (DEPTH, s, t)), dtype) for s, t in ((width, WIDTH), (WIDTH, width))]
    norms = jax.tree.map(lambda p: jnp.broadcast_to(p, (DEPTH, *p.shape)), parameters)

    def loss(layers, x):
        def block(x, layer):
            norm, first, second = layer
            y, _ = function(x, norm, state)
            return x + jax.nn.gelu(y @ first) @ second, None

        return jax.lax.scan(block, x, layers)[0].astype(jnp.float32).sum()

    program = jax.jit(jax.grad(loss)).lower((norms, *weights), x).compile()
    return program.memory_analysis().temp_size_in_bytes
