"""Imports point one way: from the ground, errors.py, up to main.py, paper/ and benchmarks/."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# From below to above; a module imports from what stands before it, and within its package in any way without a circle.
LAYERS = ["errors", "models", "loaders", "data", "command_line", "settings", "rules", "hardware", "optimizers"]
LAYERS += ["evaluate", "runs", "parallel", "train", "assemble", "figures", "visualize", "main", "benchmarks", "paper"]
FILES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0].removesuffix(".py") in LAYERS)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path):
    """Return the modules of the house that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {node.module}
    return {name for name in found if name.split(".")[0] in LAYERS}


def test_every_file_of_the_house_is_in_a_layer():
    of_house = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0].removesuffix(".py") for line in tracked.splitlines()} - {"tests"} == of_house
    assert set(LAYERS) == of_house
    assert len([line for line in tracked.splitlines() if "/" not in line]) <= 10


@pytest.mark.parametrize("module", MODULES)
def test_no_import_points_upwards(module):
    own = LAYERS.index(module.split(".")[0])
    upwards = [name for name in imports_of(MODULES[module]) if LAYERS.index(name.split(".")[0]) > own]
    assert upwards == []


def test_no_files_import_each_other_in_a_circle():
    graph = {module: imports_of(path) & MODULES.keys() for module, path in MODULES.items()}
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


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_library_loads_torch_and_itself_alone():
    others = {"matplotlib", "sklearn", "torchvision", "PIL", "torchdiffeq", "settings", "data", "main", "runs"}
    assert loaded_by("import models") & others == set()


def test_the_figures_load_no_network_and_no_torch():
    assert loaded_by("import visualize") & {"torch", "models", "settings", "data", "evaluate", "train"} == set()
