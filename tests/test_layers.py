"""Imports point one way: from the ground, errors.py, up to main.py, benchmarks/ and paper/."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# From below to above, a layer a line: a module imports from the lines before its own, or from its own without a
# circle. A package is named as a whole; of runs, its files.
LAYERS = [
    line.split()
    for line in """
    errors
    models
    hardware
    loaders
    data
    command_line
    settings
    rules
    optimizers
    evaluate
    runs runs.files runs.folder runs.place runs.process runs.reader runs.report runs.signals runs.tables runs.versions
    runs.checks runs.results runs.size
    runs.checkpoint
    runs.callbacks runs.convert runs.launch runs.repeat runs.starting_weights
    runs.opening runs.seeds runs.tensorboard
    parallel
    train
    assemble
    runs.predict
    figures
    visualize
    main
    benchmarks
    paper
    """.strip().splitlines()
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
PLACES = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")] if path.relative_to(ROOT).parts[0][0] != "."]
TOPS = {path.relative_to(ROOT).parts[0] for path in PLACES} - {"tests"}  # files and packages of the house
FILES = sorted(path for top in TOPS for path in ([ROOT / top] if top.endswith(".py") else (ROOT / top).rglob("*.py")))
OF_MODELS = {"torch", "errors", "models", *sys.stdlib_module_names}
NEEDS_A_NETWORK = {"torch", "models", "data", "settings", "rules", "evaluate", "train", "assemble", "main"}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def level_of(module):
    """Return the layer of a module of the house: its own, or that of its package."""
    return LEVELS.get(module, LEVELS.get(module.split(".")[0]))


def names_in(nodes):
    """Return what import statements name: a module of the house as itself, anything else as the module it is of."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the name of the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
    return found


def imports_of(module):
    """Return all that a module imports, also inside of functions."""
    return names_in(ast.walk(ast.parse(MODULES[module].read_text())))


def needs_of(module):
    """Return the modules that a module needs, itself among them, through all that it imports."""
    found, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += imports_of(name) if name in MODULES else ()
    return found


def test_every_file_of_the_house_has_a_layer_and_every_layer_its_file():
    assert [module for module in MODULES if level_of(module) is None] == []
    assert [name for name in LEVELS if name not in MODULES | dict.fromkeys(TOPS)] == []
    assert sum(map(len, LAYERS)) == len(LEVELS) and len(list(ROOT.glob("*.py"))) <= 10


def test_what_is_installed_is_the_house():
    text = (ROOT / "pyproject.toml").read_text().partition("py-modules = [")[2].partition("]")[0]
    assert set(text.replace('"', "").replace(",", "").split()) == {path.stem for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_points_upwards(module):
    levels = {name: level_of(name) for name in imports_of(module) if level_of(name) is not None}
    assert [name for name, level in levels.items() if level > level_of(module)] == []


def test_no_files_import_each_other_in_a_circle():
    graph = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {path[path.index(module) :]}"
        if module not in done:
            path.append(module)
            for name in graph[module]:
                visit(name)
            done.add(path.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] == "models"])
def test_the_mathematics_imports_torch_errors_and_itself_and_others_where_they_are_used(module):
    tree = ast.parse(MODULES[module].read_text())
    in_functions = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    at_once = {name.split(".")[0] for name in names_in(set(ast.walk(tree)) - in_functions)}
    later = {name.split(".")[0] for name in names_in(in_functions)}
    assert (
        at_once - OF_MODELS == set()
        and later - OF_MODELS - {"torchdiffeq", "torchvision", "timm", "onnx", "onnxscript"} == set()
    )


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in ("figures", "visualize")])
def test_what_draws_needs_no_network_no_settings_and_starts_no_program(module):
    needed = needs_of(module)
    assert {name for name in needed if name.split(".")[0] in NEEDS_A_NETWORK} == set()
    assert {name for name in needed if name.startswith("runs.")} <= {"runs.files", "runs.reader", "runs.tables"}


def loaded_by(statement):
    """Return the modules that a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_library_loads_torch_and_itself_alone():
    loaded = loaded_by("import models")
    others = {"matplotlib", "sklearn", "torchvision", "PIL", "torchdiffeq", "settings", "data", "main", "runs"}
    assert "models.checkpoint" in loaded and loaded & others == set()


def test_the_figures_load_no_network_and_no_torch():
    loaded = loaded_by("import visualize")
    assert "figures.inference" in loaded and loaded & NEEDS_A_NETWORK == set()
