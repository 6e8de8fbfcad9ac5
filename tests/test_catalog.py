"""Finding one's way among the blocks."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from dlblocks import catalog
from dlblocks.errors import UserError
from dlblocks.registry import CATALOGUES, REGISTRY, names

BLOCKS = [sys.executable, str(Path(__file__).resolve().parents[1] / "scripts" / "blocks.py")]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BLOCKS, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def column(table: object, index: int) -> list[str]:
    return list(table.columns[index].cells)  # type: ignore[attr-defined]


def test_kinds_are_counted() -> None:
    counts = dict(zip(column(catalog.kinds(), 0), column(catalog.kinds(), 1), strict=True))
    assert counts == {kind: str(len(names(kind))) for kind in CATALOGUES}


@pytest.mark.parametrize("kind", CATALOGUES)
def test_every_block_stands_in_the_table_of_its_kind(kind: str) -> None:
    assert column(catalog.listing(kind), 0) == names(kind)


def test_brackets_in_formulas_are_shown() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(catalog.listing("activation", "crelu"))
    assert "[max(x, 0), max(-x, 0)]" in console.export_text()


def test_patterns_choose() -> None:
    assert column(catalog.listing("activation", "?elu"), 0) == ["celu", "gelu", "relu", "selu"]


@pytest.mark.parametrize(
    ("kind", "pattern", "message"),
    [
        ("activation", "eluu", "Did you mean 'elu'"),
        ("activation", "zz*", "no name matches 'zz\\*'"),
        ("activations", "*", "Did you mean 'activation'"),
    ],
)
def test_nothing_found_is_told(kind: str, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        catalog.listing(kind, pattern)


def test_all_elementwise_activations_are_drawn(tmp_path: Path) -> None:
    drawn = catalog.draw("*", tmp_path / "all.png")
    assert drawn == [n for n in names("activation") if REGISTRY.get("activation", n).tags["elementwise"]]
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert catalog.draw("swish", tmp_path / "one.svg") == ["silu"]
    assert "<svg" in (tmp_path / "one.svg").read_text()


def test_what_has_no_curve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="softmax: no function of one variable"):
        catalog.draw("softmax", tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.xyz"):
        catalog.draw("elu", tmp_path / "a.xyz")


def test_the_command_line(tmp_path: Path) -> None:
    shown = run(cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "optimizer" in shown.stdout
    shown = run("activation", "elu", "--plot", "elu.png", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "alpha = 1.0" in shown.stdout
    assert "arXiv:1511.07289" in shown.stdout
    assert (tmp_path / "elu.png").exists()
    for arguments, message in (
        (["activation", "eluu"], "Did you mean 'elu'"),
        (["loss", "--plot", "a.png"], "--plot draws activations"),
        (["activation", "elu", "--plot", "missing/a.png"], "missing/a.png"),
    ):
        shown = run(*arguments, cwd=tmp_path)
        assert shown.returncode == 1
        assert message in shown.stderr
        assert "Traceback" not in shown.stderr
