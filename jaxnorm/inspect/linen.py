"""Every layer's input and output of a Flax Linen model, stock or not, by Flax's own interception of method calls."""

from collections.abc import Callable
from typing import Any

try:
    import flax.linen as nn
    from flax.core.scope import union_filters
except ImportError as error:
    raise ImportError("jaxnorm.inspect.linen needs flax: pip install 'jaxnorm[flax]'") from error

from jaxnorm.inspect.capture import Captured, run_tagged, tagged
from jaxnorm.inspect.tracing import trace

_NOBODYS = "jaxnorm.inspect"  # a collection that no module has


def capture_linen(
    model: nn.Module, variables: Any, *args: Any, method: Callable[..., Any] | str | None = None, **kwargs: Any
) -> tuple[Any, Captured]:
    """Apply a Linen model and capture what enters and leaves every module in it, norms or not.

    A module is named by its path, as its parameters are: `Dense_0`, `block1/BatchNorm_0`. The model itself comes first,
    by the name of its class. Modules stand in order of execution, outer before inner; one that is called again is
    `Dense_0#2`. What is under `nn.scan` or `nn.vmap` has that axis in its arrays; what is in while or cond is not seen.

    Args:
      model: any Linen module. Its code is not changed.
      variables: as for `model.apply`.
      args, kwargs: as for `model.apply`, `mutable` and `rngs` included.
      method: as for `model.apply`. Calls of `__call__` are captured, whatever method was called first.

    Returns:
      (output, captured): what `model.apply` returns (with `mutable`, output and updated variables), and path ->
      Activation. Works under jit, grad and vmap.

    Raises:
      Whatever `model.apply` raises.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jaxnorm.inspect import summarize
      >>> model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=False), nn.relu])
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
      >>> @jax.jit
      ... def look(variables, x):
      ...     _, captured = capture_linen(model, variables, x, mutable="batch_stats")
      ...     return jax.tree.map(summarize, captured)
      >>> summaries = look(variables, jax.random.normal(jax.random.key(1), (16, 4)))
      >>> list(summaries), summaries["layers_1"].output.std.round(2)
      (['Sequential', 'layers_0', 'layers_1'], Array(1., dtype=float32))

    Reference: `flax.linen.intercept_methods`.
    """

    def intercept(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(context.module.path) or type(context.module).__name__
        return tagged(path, call, args, kwargs)

    mutable = kwargs.pop("mutable", False)
    # `nn.jit` keeps its traces by what is mutable, and must not take one without tags: here something more is mutable.
    more = union_filters(mutable, _NOBODYS)

    def apply(variables: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with nn.intercept_methods(intercept):
            output = model.apply(variables, *args, method=method, mutable=more, **kwargs)
        return output[0] if mutable is False else output

    return run_tagged(trace(apply, variables, args, kwargs))
