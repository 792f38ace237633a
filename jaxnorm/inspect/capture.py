"""Every layer's input and output, without changing the code that is captured: of pure functions and of tagged calls.

For a pure function the layers are what the traced equations show. For modules they are the modules' calls, which
`jaxnorm.inspect.linen` and `nnx` tag: a tag is an identity with a name (`jax.ad_checkpoint.checkpoint_name`) on each
array that goes in or out, so it stays where it is through jit, remat, scan and vmap inside the model.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import JaxprEqn

from jaxnorm.inspect.tracing import Traced, Watcher, body_of, run, trace


class Activation(NamedTuple):
    """What went into one call of a layer and what came out.

    Args:
      input, output: the numeric array, or a tuple of them where there are several (in the order of the arguments), or
        an empty tuple. Masks and keys are not among them.
    """

    input: Any
    output: Any


class Captured(OrderedDict[str, Activation]):
    """Name -> Activation, in order of execution; a plain dict would come out of jit sorted by name."""

    def __missing__(self, name: str) -> NoReturn:
        known = f"Known: {', '.join(self)}." if self else "Nothing was captured."
        raise KeyError(f"Captured: no layer of that name; got {name!r}. {known}")


jax.tree_util.register_pytree_with_keys(
    Captured,
    lambda captured: ([(jax.tree_util.DictKey(name), layer) for name, layer in captured.items()], tuple(captured)),
    lambda names, layers: Captured(zip(names, layers, strict=True)),
)


def capture(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[Any, Captured]:
    """Call a pure function and capture what enters and leaves its layers.

    Layers are, as the function's equations show them and in order of execution:

    - matrix products and convolutions, `dot_general_0`, `conv_general_dilated_0`, ..., and this library's norms without
      a mask, `standardize_0`; the input is the left operand, the output of a norm what is normalized;
    - named calls, outer before inner: functions under `jax.jit` (`dense_0`; jax's own too, such as `silu_0`) and with
      derivative rules of their own (`relu_0`), unless their name begins with `_`. The input is every array with
      dimensions that they are given, parameters included. Of a call without such a layer nothing inside is named.

    In front stand the scopes of `jax.named_scope` and the named calls that a layer is inside of:
    `encoder/dense_0/dot_general_0`. Numbers count the same name in the same place, from 0. A layer in a scan is
    captured once, with the steps in front; one in while, cond, shard_map or vmap's own kernels is not seen.

    Args:
      function: any function of arrays that JAX can trace.
      args, kwargs: what to call it with; arrays are traced, anything else is a constant.

    Returns:
      (output, captured): what the function returns, and name -> Activation. Works under jit (there it costs what the
      captured arrays cost to keep), grad and vmap; derivatives of the output are the function's own.

    Raises:
      Whatever the function raises.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def model(params, x):
      ...     with jax.named_scope("encoder"):
      ...         x = jax.nn.relu(x @ params["in"])
      ...     return x @ params["out"]
      >>> params = {"in": jnp.array([[1.0, -1.0]]), "out": jnp.array([[2.0], [2.0]])}
      >>> y, captured = capture(model, params, jnp.array([[3.0]]))
      >>> list(captured)
      ['encoder/dot_general_0', 'encoder/relu_0', 'dot_general_0']
      >>> captured["encoder/dot_general_0"].output
      Array([[ 3., -3.]], dtype=float32)

    Reference: the JAX documentation, "Writing custom Jaxpr interpreters in JAX".
    """
    watcher = _Layers()
    output = run(trace(function, *args, **kwargs), watcher)
    return output, Captured((name, layer) for name, layer in watcher.found)


_NORM = "standardize"
_LAYERS = ("dot_general", "conv_general_dilated", _NORM)


class _Layers(Watcher):
    """Names layers and calls as they come: a call before what is inside it."""

    def __init__(self, counts: Counter[str] | None = None):
        super().__init__()
        self.counts: Counter[str] = Counter(counts)

    def is_layer(self, equation: JaxprEqn) -> bool:
        return equation.primitive.name in _LAYERS

    def enter(self, equation: JaxprEqn, scope: str) -> tuple[str, Any]:
        scope = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        name = equation.primitive.name if self.is_layer(equation) else _call_name(equation)
        if name is None or not any(map(_is_numeric, equation.outvars)):
            return scope, None
        name = "/".join(filter(None, (scope, name)))
        entry = [f"{name}_{self.counts[name]}", None]
        self.counts[name] += 1
        self.found.append(entry)
        return entry[0], entry

    def see(self, equation: JaxprEqn, noted: Any, inputs: list[Any], outputs: list[Any]) -> None:
        if noted is not None:
            arrays = inputs[:1] if self.is_layer(equation) else [x for x in inputs if jnp.ndim(x)]
            results = outputs[:1] if self.is_layer(equation) else outputs  # a norm's statistics are its own
            noted[1] = Activation(_one_or_all(arrays), _one_or_all(results))

    def branch(self) -> "_Layers":
        return type(self)(self.counts)

    def join(self, branch: Watcher) -> None:
        super().join(branch)
        assert isinstance(branch, _Layers)
        self.counts = branch.counts


def _call_name(equation: JaxprEqn) -> str | None:
    body = body_of(equation)
    if body is None or equation.primitive.name == "scan":
        return None
    name = equation.params.get("name") or body.jaxpr.debug_info.func_name
    return name if name.isidentifier() and not name.startswith("_") else None


def _is_numeric(x: Any) -> bool:
    dtype = getattr(getattr(x, "aval", x), "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.number)


def _one_or_all(arrays: Any) -> Any:
    arrays = tuple(leaf for leaf in jax.tree.leaves(arrays) if _is_numeric(leaf))
    return arrays[0] if len(arrays) == 1 else arrays


# -- tagged calls -----------------------------------------------------------------------------------------------------

_TAG = "jaxnorm.inspect"


def tagged(path: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a layer, with a tag on every array that goes in and comes out."""
    args, kwargs = _tag(f"{_TAG}:input:{path}", (args, kwargs))
    return _tag(f"{_TAG}:output:{path}", call(*args, **kwargs))


def _tag(name: str, tree: Any) -> Any:
    mark = lambda leaf: checkpoint_name(leaf, name) if isinstance(leaf, jax.Array) and _is_numeric(leaf) else leaf
    return jax.tree.map(mark, tree)


def run_tagged(traced: Traced) -> tuple[Any, Captured]:
    """Run a function whose layers are tagged. A layer that is called again is `path#2`, `path#3`, ..."""
    watcher = _Tags()
    output = run(traced, watcher)
    calls: dict[str, list[dict[str, list[Any]]]] = {}
    order: list[tuple[str, dict[str, list[Any]]]] = []
    for tag, value in watcher.found:
        _, role, path = tag.split(":", 2)
        of_path = calls.setdefault(path, [])
        if not of_path or (role == "input" and of_path[-1]["output"]):
            of_path.append({"input": [], "output": []})
            order.append((path if len(of_path) == 1 else f"{path}#{len(of_path)}", of_path[-1]))
        of_path[-1][role].append(value)
    return output, Captured((name, Activation(*map(_one_or_all, call.values()))) for name, call in order)


class _Tags(Watcher):
    def is_layer(self, equation: JaxprEqn) -> bool:
        return equation.primitive.name == "name" and equation.params["name"].startswith(_TAG)

    def see(self, equation: JaxprEqn, noted: Any, inputs: list[Any], outputs: list[Any]) -> None:
        if self.is_layer(equation):
            self.found.append([equation.params["name"], outputs[0]])
