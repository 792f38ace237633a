"""The shape of the library: what is public, what imports what, and that nothing public goes untested or undescribed."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CORE, FAMILY

import jaxnorm as jn
import jaxnorm.inspect as jn_inspect
import jaxnorm.plots as jn_plots

PACKAGE = Path(jn.__file__).parent
ORDER = ["arguments", "eager", "collectives", "kernels", "rules", "moments", "running", "standardize", "norms"]
ORDER += ["fold", "decay", "convert", "linen", "nnx", "inspect", "plots"]
MODULES = {"linen", "nnx"}  # of Flax: the only names of files and folders that may import it
BUILD = PACKAGE / "kernels/build.py"  # runs where the package is built, under hatchling
PICTURES = {"matplotlib", "mpl_toolkits", "plotly"}  # of the extra `plots`: only the folder of that name imports them
FUNCTIONS = [name for name in jn.__all__ if inspect.isfunction(getattr(jn, name))]
DESCRIBED = [
    pytest.param(module, name, id=name)
    for module in (jn, jn_inspect, jn_plots)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
]
OTHER = {"merge", "merge_over", "modulate", "moments", "normalize", "standardize", "blend", "recalibrate", "decay_mask"}
OTHER |= {"implementations"}  # test_kernels.py
OTHER |= {"add_layer_norm", "add_rms_norm"}  # a sum before a norm: test_residual.py
NORMS = sorted(set(FUNCTIONS) - OTHER)


def imports(path: Path) -> set[str]:
    """The jaxnorm modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxnorm":
            parts = node.module.split(".")[1:] or [alias.name for alias in node.names]
            found.add(parts[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxnorm.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module == "__init__":
        assert imports(path) <= set(ORDER)
        return
    assert module in ORDER, f"{module} has no place in the order of imports"
    below = ORDER[: ORDER.index(module)] + (
        [module] if path.parent != PACKAGE else []
    )  # files of one folder may build on another
    assert imports(path) <= set(below), f"{module} may import only {below}"


def test_the_order_of_imports_is_of_what_is_there():
    assert {p.stem for p in PACKAGE.iterdir() if p.suffix in ("", ".py") and p.stem.isidentifier()} >= set(ORDER)


def loaded_by_importing(module: str) -> list[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_jaxnorm_loads_neither_flax_nor_pallas():
    loaded = loaded_by_importing("jaxnorm")  # jax.extend brings some private parts of pallas along
    assert not [m for m in loaded if m.split(".")[0] == "flax" or m.startswith("jax.experimental.pallas")]


@pytest.mark.parametrize("module", ["inspect", "convert", "fold"])  # jax.extend, for inspect, loads parts of pallas
def test_importing_what_is_not_of_flax_does_not_load_it(module):
    assert not [m for m in loaded_by_importing(f"jaxnorm.{module}") if m.split(".")[0] == "flax"]


def test_the_runtime_dependency_is_jax_alone():
    roots = sys.stdlib_module_names | {"jaxnorm", "jax", "numpy"}
    for path in PACKAGE.rglob("*.py"):
        parts = {*path.relative_to(PACKAGE).with_suffix("").parts}
        allowed = roots | ({"flax"} if parts & MODULES else set()) | (PICTURES if "plots" in parts else set())
        allowed |= {"hatchling"} if path == BUILD else set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, (path, node.module)
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path


@pytest.mark.parametrize("module", sorted(MODULES))
def test_flax_modules_without_flax_say_which_extra_to_install(module):
    code = f"import sys; sys.modules['flax'] = None; import jaxnorm; import jaxnorm.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ImportError: jaxnorm.{module} needs flax: pip install 'jaxnorm[flax]'" in done.stderr


def test_only_rules_defines_derivatives():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "rules":
            text = path.read_text()
            assert not any(word in text for word in ("custom_jvp", "custom_vjp", "Primitive", "jax.checkpoint(")), path


ELSEWHERE = {  # norms that the table cannot hold, and where they are tested
    "domain_batch_norm": "batch_norm by another state: test_domain.py",
    "weight_norm": "test_weight.py",
    "spectral_norm": "a state that is no moment: test_weight.py",
}


def test_every_norm_has_rows_in_the_table():
    rows = {case.function.__name__ for case in CORE + FAMILY}
    assert rows == set(NORMS) - set(ELSEWHERE)


def test_all_is_sorted_and_exists():
    assert jn.__all__ == sorted(jn.__all__)
    assert all(hasattr(jn, name) for name in jn.__all__)


@pytest.mark.parametrize(("module", "name"), DESCRIBED)
def test_public_functions_are_described(module, name):
    doc = inspect.getdoc(getattr(module, name)) or ""
    for part in ("Args:", "Returns:", "Raises:", ">>>", "Reference:"):
        assert part in doc, f"{name}: no {part} in its docstring"
    for parameter in inspect.signature(getattr(module, name)).parameters:
        assert parameter in doc, f"{name}: `{parameter}` is not described"


SIGNATURES = {
    "layer_norm": "x scale=None bias=None * axis=-1 epsilon=1e-06 where=None axis_name=None scale_offset=0.0 dtype=None implementation=None",
    "rms_norm": "x scale=None * axis=-1 epsilon=1e-06 where=None axis_name=None scale_offset=0.0 dtype=None implementation=None",
    "group_norm": "x scale=None bias=None * num_groups=None group_size=None feature_axis=-1 axis=None epsilon=1e-06 where=None axis_name=None scale_offset=0.0 dtype=None implementation=None",
    "instance_norm": "x scale=None bias=None * feature_axis=-1 axis=None epsilon=1e-06 where=None axis_name=None scale_offset=0.0 dtype=None implementation=None",
    "batch_norm": "x stats scale=None bias=None * training momentum=0.9 epsilon=1e-05 feature_axis=-1 where=None axis_name=None axis_index_groups=None ghost_size=None ddof=0 debias=False scale_offset=0.0 dtype=None implementation=None",
    "moments": "x axis * where=None axis_name=None axis_index_groups=None center=True",
    "merge": "a b",
    "merge_over": "m axis_name axis_index_groups=None",
    "normalize": "x mean var scale=None bias=None * axis epsilon scale_offset=0.0 dtype=None",
    "modulate": "y scale bias * scale_offset=0.0",
    "standardize": "x scale=None bias=None * axis epsilon where=None axis_name=None axis_index_groups=None center=True scale_offset=0.0 dtype=None implementation=None",
    "blend": "stats m * prior_count",
    "recalibrate": "moments_fn batches",
    "decay_mask": "params",
    "implementations": "",
    "weight_norm": "v g=None * axis epsilon=1e-12",
    "spectral_norm": "w state * update n_steps=1 epsilon=1e-12",
    "adaptive_instance_norm": "content style * feature_axis=-1 axis=None epsilon=1e-05 where=None style_where=None dtype=None",
    "add_layer_norm": "x residual scale=None bias=None options",
    "add_rms_norm": "x residual scale=None options",
    "batch_renorm": "x stats scale=None bias=None * training r_max=3.0 d_max=5.0 momentum=0.99 epsilon=0.001 feature_axis=-1 where=None axis_name=None axis_index_groups=None ddof=0 debias=False scale_offset=0.0 dtype=None implementation=None",
    "domain_batch_norm": "x stats domain scale=None bias=None * training options",
    "dynamic_erf": "x alpha shift=0.0 scale=None bias=None * where=None scale_offset=0.0 dtype=None",
    "dynamic_tanh": "x alpha scale=None bias=None * where=None scale_offset=0.0 dtype=None",
    "evo_norm_b0": "x stats v scale=None bias=None * training momentum=0.9 epsilon=1e-05 feature_axis=-1 axis=None where=None axis_name=None axis_index_groups=None ddof=0 debias=False scale_offset=0.0 dtype=None",
    "evo_norm_s0": "x v scale=None bias=None * num_groups=None group_size=None feature_axis=-1 axis=None epsilon=1e-05 where=None scale_offset=0.0 dtype=None",
    "filter_response_norm": "x scale=None bias=None threshold=None * feature_axis=-1 axis=None epsilon=1e-06 where=None scale_offset=0.0 dtype=None",
    "global_response_norm": "x scale=None bias=None * feature_axis=-1 axis=None epsilon=1e-06 where=None dtype=None",
    "local_response_norm": "x * size alpha=0.0001 beta=0.75 k=1.0 feature_axis=-1 where=None",
    "lp_normalize": "x * axis=-1 p=2 epsilon=1e-12 where=None",
    "mean_only_batch_norm": "x stats bias=None * training momentum=0.9 feature_axis=-1 where=None axis_name=None axis_index_groups=None ddof=0 debias=False dtype=None",
    "weight_standardize": "w gain=None * axis epsilon=1e-06 scaled=False",
    "whiten": "x stats scale=None bias=None * training method=zca num_groups=None group_size=None steps=5 momentum=0.9 epsilon=1e-05 feature_axis=-1 where=None axis_name=None axis_index_groups=None debias=False scale_offset=0.0 dtype=None",
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_the_contract(name):
    words, keyword = [], False
    for parameter in inspect.signature(getattr(jn, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            words.append("*")
            keyword = True
        words.append(parameter.name + ("" if parameter.default is parameter.empty else f"={parameter.default}"))
    assert " ".join(words) == SIGNATURES[name]
