"""What a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from dlblocks.results import Result, draw_curves, versions, write_atomically
from dlblocks.runs import new_folder


def test_result_is_valid_json_whatever_the_numbers(tmp_path: Path) -> None:
    Result(folder=str(tmp_path), metrics={"val/loss": float("nan"), "val/r2": float("-inf")}).save()
    saved = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert saved["metrics"] == {"val/loss": None, "val/r2": None}


def test_a_saved_result_is_read_back(tmp_path: Path) -> None:
    result = Result(
        folder=str(tmp_path), status="completed", metrics={"val/m": 0.5}, main_metric=("val/m", "min")
    )
    result.save()
    assert Result.load(tmp_path) == result


def test_the_table_shows_test_before_validation_and_the_folder(tmp_path: Path) -> None:
    result = Result(folder=str(tmp_path), metrics={"val/accuracy": 0.5, "test/accuracy": 0.25, "lr": 1.0})
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    text = console.export_text()
    console.file.close()
    assert text.index("test accuracy") < text.index("val accuracy") < text.index(str(tmp_path))
    assert "0.2500" in text
    assert "lr" not in text


@pytest.mark.parametrize(
    ("optimizer", "word"),
    [({"lr": "auto"}, "found"), ({"lr": 0.1, "lr_reference_batch_size": 16}, "rescaled")],
)
def test_the_table_says_where_a_rate_comes_from(optimizer: dict[str, object], word: str) -> None:
    chosen = {"optimizer.lr": 0.25, "data.batch_size": 64}
    table = Result(folder="", recipe={"optimizer": optimizer}, chosen=chosen).table()
    assert {f"0.25 ({word})", "64 (found)"} < set(table.columns[1].cells)


def test_writing_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, None)  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_curves_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    rows = [{"epoch": 0.0, "train/loss": 1.0, "val/loss": 1.1}, {"epoch": 1.0, "train/loss": 0.5}]
    for name, given in (("some.png", rows), ("none.png", [])):
        draw_curves(given, "accuracy", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_versions_are_those_installed() -> None:
    import torch

    assert versions()["torch"] == torch.__version__


def test_folders_are_never_shared(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path, "name") for _ in range(20)]
    assert len(set(folders)) == 20
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_root_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        new_folder(tmp_path / "file", "name")
