"""A package that has nothing to do with dlblocks but its entry point, installed by pip into an environment."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "steep-blocks"
version = "1.0"

[project.entry-points."dlblocks.blocks"]
steep = "steep_blocks"

[tool.setuptools]
py-modules = ["steep_blocks"]
"""
MODULE = '''
import torch
from torch import Tensor, nn

import dlblocks


@dlblocks.register(
    "activation",
    params=(dlblocks.Param("slope", 2.0, "float", "slope of the positive side", "(0, inf)"),),
    formula="slope * max(x, 0)",
    shape="(*) -> (*)",
    source="the steep company",
    elementwise=True,
)
class SteepReLU(nn.Module):
    """A steep ReLU."""

    def __init__(self, slope: float = 2.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * torch.relu(x)
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with dlblocks and the package; the dependencies are this one's."""
    folder = tmp_path_factory.mktemp("third_party")
    (folder / "source").mkdir()
    (folder / "source" / "pyproject.toml").write_text(PYPROJECT)
    (folder / "source" / "steep_blocks.py").write_text(MODULE)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    subprocess.run([*pip, "--no-build-isolation", str(folder / "source"), "-e", str(ROOT)], check=True)
    return python


def run(python: Path, *arguments: str, cwd: Path = ROOT, **variables: str) -> str:
    done = subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_with_a_page_and_a_picture(python: Path, tmp_path: Path) -> None:
    listing = run(python, "scripts/blocks.py", "activation", "steep*", COLUMNS="200")
    assert "steep_relu" in listing
    assert "slope * max(x, 0)" in listing
    page = run(python, "scripts/blocks.py", "activation", "steep_relu", "--plot", str(tmp_path / "steep.png"))
    assert "A steep ReLU." in page
    assert "slope = 2.0  slope of the positive side" in page
    assert (tmp_path / "steep.png").stat().st_size > 1000


def test_it_is_an_option_with_help_and_completion(python: Path) -> None:
    assert "steep_relu" in run(python, "scripts/train.py", "--help")
    shown = run(python, "scripts/train.py", "activation=steep_relu", "activation.slope=3", "--cfg", "job")
    assert "activation:\n  name: steep_relu\n  slope: 3" in shown
    completed = run(
        python,
        "scripts/train.py",
        "-sc",
        "query=bash",
        COMP_LINE="python scripts/train.py activation=steep",
        COMP_POINT="39",
    )
    assert "activation=steep_relu" in completed


def test_wrong_parameters_get_one_message(python: Path, tmp_path: Path) -> None:
    command = [python, ROOT / "scripts" / "train.py", "activation=steep_relu", "activation.slope=-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.strip() == "error: activation.slope=-1: must be a number in (0, inf) (default 2.0)."


def test_it_trains(python: Path, tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "train.py")
    run(python, script, "activation=steep_relu", "trainer.max_epochs=1", cwd=tmp_path)
    (config,) = tmp_path.glob("runs/*/*/config.yaml")
    assert "name: steep_relu" in config.read_text()


def test_it_passes_the_block_tests(python: Path) -> None:
    tests = [
        "tests/activations",
        "tests/test_registry.py",
        "-k",
        "steep_relu or whole or duplicate",
        "-n",
        "0",
        "-q",
    ]
    assert " passed" in run(python, "-m", "pytest", *tests, "-p", "no:cacheprovider")


def test_without_it_the_name_is_unknown() -> None:
    code = textwrap.dedent(
        """
        import dlblocks
        try:
            dlblocks.activation("steep_relu")
        except dlblocks.UserError as error:
            print(error)
        """
    )
    assert "unknown activation 'steep_relu'" in run(Path(sys.executable), "-c", code)
