"""Every layer's input and output of a Flax NNX model, stock or not, from a copy whose modules tag their calls."""

import functools
from typing import Any

import jax

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("jaxnorm.inspect.nnx needs flax: pip install 'jaxnorm[flax]'") from error

from jaxnorm.inspect.capture import Captured, run_tagged, tagged
from jaxnorm.inspect.tracing import trace


def capture_nnx(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, Captured]:
    """Call an NNX model and capture what enters and leaves every module in it, norms or not.

    A module is named by its path in the model: `conv1`, `layers/0`. The model itself comes first, by the name of its
    class. Modules stand in order of execution, outer before inner; one that is called again is `conv1#2`. What is under
    `nnx.scan` or `nnx.vmap` has that axis in its arrays; what is in while or cond is not seen.

    Args:
      model: any NNX module. Neither its code nor its class is changed; variables that the call changes (running
        statistics, counts of random draws) are changed as by an ordinary call.
      args, kwargs: what to call it with.

    Returns:
      (output, captured): what `model(*args, **kwargs)` returns, and path -> Activation. Works under `nnx.jit`, grad and
      vmap, and under `jax.jit` with the model from outside if the call changes no variable.

    Raises:
      Whatever the model raises.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)), nnx.relu)
      >>> y, captured = capture_nnx(model, jnp.ones((2, 4)))
      >>> list(captured)
      ['Sequential', 'layers/0', 'layers/1']
      >>> captured["layers/1"].input.shape
      (2, 8)

    Reference: the Flax documentation, "The Functional API" (`nnx.split` and `nnx.merge`).
    """
    graph, state = nnx.split(model)

    def call(state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        copy = nnx.merge(graph, state)
        for path, module in list(nnx.iter_modules(copy)):
            if callable(module):
                setattr(module, _PATH, "/".join(map(str, path)) or type(module).__name__)
                object.__setattr__(module, "__class__", _tagging(type(module)))
        output = copy(*args, **kwargs)
        return output, nnx.state(copy)

    (output, new_state), captured = run_tagged(trace(call, state, args, kwargs))
    nnx.update(model, _changed(state, new_state))
    return output, captured


# A static attribute, which the modules keep where nnx.jit, remat, scan or vmap make them anew.
_PATH = "_inspect_path"


@functools.cache
def _tagging(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The same class with a tag on its calls. Made once for each, since every class is registered with JAX for good."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return tagged(getattr(self, _PATH), functools.partial(kind.__call__, self), args, kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _changed(old: Any, new: Any) -> Any:
    """The variables that are not the very arrays they were: to write the others could cross a trace for nothing."""
    before = dict(nnx.to_flat_state(old))
    same = lambda a, b: [id(x) for x in jax.tree.leaves(a)] == [id(x) for x in jax.tree.leaves(b)]
    kept = [
        (path, value) for path, value in nnx.to_flat_state(new) if path not in before or not same(before[path], value)
    ]
    return nnx.from_flat_state(kept)
