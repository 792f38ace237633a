"""The ways in which a norm is called: jitted forward, forward and backward; eagerly; traced; inside a model."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.shapes import Case

LAYERS = 24


def forward(contender: Contender) -> tuple[Callable, tuple]:
    return contender.function, (contender.x, contender.parameters, contender.state)


def forward_and_backward(contender: Contender) -> tuple[Callable, tuple]:
    """y, the new state, and the gradients of x and the parameters for a random cotangent."""
    function, x, dy, parameters, state = contender

    def run(x, p, s, dy):
        y, pull, s = jax.vjp(lambda x, p: function(x, p, s), x, p, has_aux=True)
        return y, s, pull(dy)

    return run, (x, parameters, state, dy)


JITTED = {"forward": forward, "forward+backward": forward_and_backward}


def jitted(function: Callable, args: tuple) -> Callable[[], Any]:
    run = jax.jit(function)
    return lambda: jax.block_until_ready(run(*args))


def eager(contender: Contender) -> Callable[[], Any]:
    function, args = forward(contender)
    return lambda: jax.block_until_ready(function(*args))


# -- preparation -------------------------------------------------------------------------------------------------------


def stack(contender: Contender) -> tuple[Callable, tuple]:
    """The gradient of 24 norms one after the other, each with parameters of its own."""
    function, x, _, parameters, state = contender

    def loss(layers, x):
        for p in layers:
            x, _ = function(x, p, state)
        return x.astype(jnp.float32).sum()

    return jax.grad(loss), ([parameters] * LAYERS, x)


def preparation(contender: Contender, *, compile: bool) -> dict[str, float]:
    """Seconds to trace and lower the gradient of 24 layers from empty caches; and perhaps to compile it."""
    jax.clear_caches()
    function, args = stack(contender)
    start = time.perf_counter()
    traced = jax.jit(function).trace(*args)
    lowering = time.perf_counter()
    lowered = traced.lower()
    compiling = time.perf_counter()
    seconds = {"trace": lowering - start, "lower": compiling - lowering}
    if compile:
        lowered.compile()
        seconds["compile"] = time.perf_counter() - compiling
    return seconds


# -- inside a model ----------------------------------------------------------------------------------------------------


def in_model(contender: Contender, case: Case) -> tuple[Callable, tuple]:
    """Gradients of a product, the norm, an activation and a product: XLA would fuse the norm with its neighbours."""
    function, x, _, parameters, state = contender
    rng = np.random.default_rng(3)
    first, second = (jnp.asarray(rng.normal(0, case.features**-0.5, (case.features,) * 2), x.dtype) for _ in range(2))

    def loss(weights, p, x):
        y, _ = function(x @ weights[0], p, state)
        return (jax.nn.gelu(y) @ weights[1]).astype(jnp.float32).var()

    return jax.value_and_grad(loss, (0, 1, 2)), ((first, second), parameters, x)
