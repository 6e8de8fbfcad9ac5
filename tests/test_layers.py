"""Imports go one way, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dlblocks"

# Each may import those above it, and its own.
LAYERS = [
    ("errors", "processes", "revision", "terminal"),
    ("records",),
    ("registry", "rebinding"),
    ("seeds", "results", "activations", "losses", "rules", "probing"),
    ("factory", "calls", "arguments"),
    ("theory", "surgery"),
    ("initializers", "optimizers", "schedulers", "tasks", "shares"),
    ("models", "meter", "sharding", "compiling", "sync_batch_norm", "recomputing"),
    ("data",),
    ("module", "recipe", "instantiate", "runs", "history", "checkpoints", "moved"),
    ("assembly", "trainer", "catalog", "endings"),
    ("diagnosis", "loading"),
    ("tuning", "continuity"),
    ("resuming",),
    ("finding",),
    ("training",),
    ("evaluation", "prediction", "exporting"),
    ("sweeps",),
    ("hydra",),
    ("__init__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "lightning", "torchmetrics", "sklearn", "matplotlib", "numpy", "rich", "hydra", "omegaconf"}

# What each catalogue or torch-free module may import when it is itself imported.
LIGHT = [
    "errors",
    "processes",
    "revision",
    "terminal",
    "registry",
    "arguments",
    "factory",
    "tasks",
    "recipe",
    "runs",
    "results",
    "instantiate",
    "sweeps.record",
]
LIGHT += [
    "activations",
    "initializers",
    "losses",
    "optimizers",
    "schedulers",
    "models",
    "data",
    "diagnosis",
    "theory",
    "activations.width",
]

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "dlblocks"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        other = parts[1]
        if other in RANK and other != own:
            assert RANK[other] < RANK[own], f"{path.name} imports {name}"


def test_every_room_has_its_layer() -> None:
    assert {room(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_function_calls_hydras_instantiate(path: Path) -> None:
    if path.name != "instantiate.py":
        assert "hydra.utils" not in path.read_text()


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    code = f"import sys, dlblocks.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_the_public_surface() -> None:
    import dlblocks

    assert sorted(dlblocks.__all__) == dlblocks.__all__ == dir(dlblocks)
    for name in dlblocks.__all__:
        assert getattr(dlblocks, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dlblocks.no_such_name
