"""How the primitives become code on the CPU: the formulas or the kernels, and the latter on many devices.

XLA cannot divide a call that it does not understand: `custom_partitioning` tells it how. Each device computes what it
holds of x, whatever axes that is divided over: gradients of parameters are summed over devices, all at once, and where
the numbers of one set are spread over devices the formulas compute, and sum over those.
"""

import math
import string
import warnings
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.core import ShapedArray
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding, use_abstract_mesh

from jaxnorm.kernels import library
from jaxnorm.rules import native
from jaxnorm.rules.formulas import Norm, Places, Want

PARAMETERS, STATISTICS = {"scale", "bias"}, {"mean", "residual", "var"}  # all else is like x, or a number


_with_kernels = []


def register(primitive, formula, here: Callable, names_in: Callable, names_out: Callable) -> None:
    """Lower by the formula; on the CPU by `here`, what a device computes, where kernels serve.

    names_in, names_out: of the static parameters, the names of the flat operands and results.
    """
    plain = mlir.lower_fun(formula, multiple_results=True)

    def forced(ctx, *flat, **static):
        _refuse(static["norm"], "this is not a CPU")
        return plain(ctx, *flat, **static)

    def cpu(ctx, *flat, **static):
        norm = static["norm"]
        names = names_in(**static)
        obstacle = _obstacle(ctx, norm, names, static.get("want"))
        if obstacle:
            _refuse(norm, obstacle)
            return plain(ctx, *flat, **static)
        body = here
        axes = ctx.module_context.axis_context
        if isinstance(axes, mlir.ShardingContext) and axes.num_devices > 1:
            body = _divided(here, names, names_out(**static))
        # What a device computes is of its own arrays: their places in a mesh are behind us.
        bare = [ShapedArray(a.shape, a.dtype) for a in ctx.avals_in]
        return mlir.lower_fun(body, multiple_results=True)(ctx.replace(avals_in=bare), *flat, **static)

    mlir.register_lowering(primitive, forced)
    mlir.register_lowering(primitive, cpu, platform="cpu")
    _with_kernels.append(primitive)


def _refuse(norm: Norm, why: str) -> None:
    if norm.implementation == "cpu":
        raise ValueError(f"implementation='cpu': the compiled kernels cannot serve here: {why}. Pass None to choose.")


def _obstacle(ctx, norm: Norm, names: list[str], want) -> str | None:
    if norm.implementation == "xla":
        return "implementation='xla'"
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext) and set(axes.manual_axes) != set(axes.mesh.axis_names):
        return "some axes of the mesh are manual, some are not"
    if isinstance(axes, mlir.ShardingContext) and axes.num_devices > 1 and axes.abstract_mesh is None:
        return "several devices, without a mesh that says how x is divided"
    avals = dict(zip(names, ctx.avals_in, strict=True))
    likes = [w for w in (want or ())[1:3] if w is not None]
    return missing(ctx) or native.hindrance(norm, avals["x"], avals.get("scale"), avals.get("bias"), *likes)


def missing(ctx) -> str | None:
    """Why no kernel at all can be called in this program, or None."""
    if ctx.module_context.lowering_parameters.for_export:
        return "an exported program must run without them"
    return library.missing()


_devices_known = False


def know_devices() -> None:
    """Programs for several CPUs are lowered for given devices, as `custom_partitioning` asks; others for any.

    JAX has no public name for that yet. Without it several CPUs get the formulas, and a word of it; before there are
    devices, the formulas.
    """
    global _devices_known
    if _devices_known:
        return
    try:
        from jax._src.dispatch import prim_requires_devices_during_lowering as needing
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError as error:
        _devices_known = True
        if jax.default_backend() == "cpu" and jax.device_count() > 1:
            todo = "Programs for several CPUs are computed by XLA instead; a newer jaxnorm may know this JAX."
            warnings.warn(
                f"jaxnorm: kernels cannot be divided over devices: {error}. {todo}", RuntimeWarning, stacklevel=2
            )
        return
    if not backends_are_initialized():
        return
    _devices_known = True
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        needing.update(_with_kernels)


# -- on many devices ---------------------------------------------------------------------------------------------------


def _divided(here: Callable, names_in: list[str], names_out: list[str]) -> Callable:
    def run(*flat, **static):
        norm: Norm = static["norm"]
        x = flat[names_in.index("x")]

        def places_of(mesh, x) -> Places:
            spec = _spec(mesh, x.sharding, len(x.shape))
            sizes = [math.prod(mesh.shape[n] for n in names) for names in spec]
            divided = [
                n % size == 0 and (n > size or a not in own)
                for a, (n, size) in enumerate(zip(x.shape, sizes, strict=True))
            ]
            return tuple(names if divides else () for names, divides in zip(spec, divided, strict=True))

        def specs(names: Iterable[str], arrays, places: Places):
            return [PartitionSpec(*_places(n, a.shape, places, norm)) for n, a in zip(names, arrays, strict=True)]

        def partition(mesh, args, results):
            places = places_of(mesh, args[0])
            local = dict(static)
            if "want" in static:
                wants = [w for w in static["want"] if w is not None]
                shares = iter(_share(mesh, w, s) for w, s in zip(wants, specs(names_out, wants, places), strict=True))
                local["want"] = Want(*(None if w is None else next(shares) for w in static["want"]))
            put = [
                [NamedSharding(mesh, s) for s in specs(n, a, places)]
                for n, a in ((names_in, args), (names_out, results))
            ]

            def share(*flat):
                with use_abstract_mesh(AbstractMesh((), ())):  # these are arrays of one device, whoever set a mesh
                    return tuple(here(*flat, **local, places=places))

            return mesh, share, tuple(put[1]), tuple(put[0])

        def infer(mesh, args, results):
            return tuple(NamedSharding(mesh, s) for s in specs(names_out, results, places_of(mesh, args[0])))

        call = custom_partitioning(lambda *flat: tuple(here(*flat, **static)))
        results = jax.eval_shape(lambda *flat: tuple(here(*flat, **static)), *flat)
        # One entry to a device: its share of such a gradient would look as if it served all.
        gradients = [r for n, r in zip(names_out, results, strict=True) if n in PARAMETERS and r.ndim == x.ndim]
        own = {a for r in gradients for a, n in enumerate(r.shape) if n > 1}
        rule = " -> ".join(
            ", ".join(
                _factors(n, a.shape, x.ndim, norm, f"{side}{i}")
                for i, (n, a) in enumerate(zip(names, arrays, strict=True))
            )
            for side, names, arrays in (("p", names_in, flat), ("q", names_out, results))
        )
        # Undecoded: behind a reshape XLA may divide unevenly, or over a part of an axis, which JAX has no words for.
        options = {"infer_sharding_from_operands": infer, "sharding_rule": rule, "decode_shardings": False}
        call.def_partition(partition, **options)
        return call(*flat)

    return run


def _spec(mesh: Mesh, sharding: Sharding | None, ndim: int) -> list[tuple[str, ...]]:
    """The axes of the mesh that divide each dimension, in their order; none where something else does."""
    if sharding is None:
        return [()] * ndim
    parts = sharding.devices_indices_map((mesh.size,) * ndim)  # of a shape that any number of them divides
    shape, coordinates, spec = mesh.devices.shape, np.indices(mesh.devices.shape), []
    for a in range(ndim):
        begins = np.array([parts[device][a].start or 0 for device in mesh.devices.flat]).reshape(shape)
        strides = [np.ptp(begins, i).max() // max(n - 1, 1) for i, n in enumerate(shape)]
        order = sorted((i for i, stride in enumerate(strides) if stride), key=lambda i: -strides[i])
        part, parts_of_all = np.zeros(shape, int), 1
        for i in order:
            part, parts_of_all = part * shape[i] + coordinates[i], parts_of_all * shape[i]
        whole_axes = np.array_equal(begins, part * (mesh.size // parts_of_all))
        spec.append(tuple(mesh.axis_names[i] for i in order) if whole_axes else ())
    return spec


def _axes(name: str, shape, ndim: int, norm: Norm) -> list[int | None]:
    """For each dimension of an operand or result the axis of x that it is, if it is one."""
    if name in PARAMETERS and len(shape) < ndim:
        return list(norm.features)
    if name in STATISTICS:
        return [None if a in norm.axes else a for a in range(ndim)]
    if name in PARAMETERS:
        return [a if n > 1 else None for a, n in enumerate(shape)]
    return list(range(len(shape)))


def _places(name: str, shape, places: Places, norm: Norm):
    return [None if a is None else places[a] or None for a in _axes(name, shape, len(places), norm)]


def _factors(name: str, shape, ndim: int, norm: Norm, own: str) -> str:
    """The dimensions by name, for XLA to see which go together."""
    axes = _axes(name, shape, ndim, norm)
    return " ".join(
        own + string.ascii_lowercase[i] if a is None else string.ascii_lowercase[a] for i, a in enumerate(axes)
    )


def _share(mesh, like, spec):
    """What a device holds of it."""
    spec = [() if s is None else s if isinstance(s, tuple) else (s,) for s in spec]
    shape = tuple(n // math.prod(mesh.shape[name] for name in s) for n, s in zip(like.shape, spec, strict=True))
    return jax.ShapeDtypeStruct(shape, like.dtype)
