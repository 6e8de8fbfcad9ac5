"""The record of a sweep."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console

from dlblocks.results import Result
from dlblocks.sweeps.record import SweepRecord


def filled(folder: Path, mode: str, values: list[float | None]) -> SweepRecord:
    record = SweepRecord(folder)
    for number, value in enumerate(values):
        record.start(number, [f"seed={number}", "+x.y=a=b", "data=digits"], f"{folder}/{number}")
        if value is None:
            record.fail("no, it failed")
        else:
            metrics = {"val/m": value, "test/m": value / 2}
            record.complete(
                Result(folder="", status="completed", metrics=metrics, main_metric=("val/m", mode))
            )
    return record


def test_best_first_in_either_direction(tmp_path: Path) -> None:
    assert [row["run"] for row in filled(tmp_path, "max", [0.1, None, 0.9, 0.5]).rows()] == [2, 3, 0, 1]
    assert [row["run"] for row in filled(tmp_path, "min", [0.1, None, 0.9, 0.5]).rows()] == [0, 3, 2, 1]


def test_the_file_is_whole_after_every_run(tmp_path: Path) -> None:
    record = filled(tmp_path, "max", [0.25, None])
    record.start(2, ["seed=2"], "running")
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["completed", "failed", "running"]
    assert rows[0]["test/m"] == "0.125"
    assert rows[1]["error"] == "no, it failed"


def test_columns_are_what_was_varied(tmp_path: Path) -> None:
    columns = [column.header for column in filled(tmp_path, "max", [0.1, 0.2]).table().columns]
    assert columns == ["run", "seed", "status", "val m", "test m"]


def test_lists_are_shown_whole(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path)
    for number, widths in enumerate(("[64]", "[64,32]")):
        record.start(number, [f"model.widths={widths}"], "")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(record.table())
    assert "[64,32]" in console.export_text()


def test_a_sweep_in_which_all_runs_failed_still_has_a_table(tmp_path: Path) -> None:
    assert filled(tmp_path, "max", [None, None]).table().row_count == 2


def test_what_was_chosen_has_columns(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path)
    for number, chosen in enumerate(({"optimizer.lr": 0.0125}, {})):
        record.start(number, [f"seed={number}"], "")
        record.complete(
            Result(
                folder="",
                status="completed",
                metrics={"val/m": 0.5},
                main_metric=("val/m", "max"),
                chosen=chosen,
            )
        )
    assert [row["chosen optimizer.lr"] for row in record.rows()] == [0.0125, ""]
    (column,) = [column for column in record.table().columns if column.header == "chosen optimizer.lr"]
    assert list(column.cells) == ["0.0125", ""]


def test_what_was_chosen_for_a_run_that_failed_is_kept(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path)
    folder = tmp_path / "0"
    folder.mkdir()
    Result(str(folder), status="failed", main_metric=("val/m", "min"), chosen={"data.batch_size": 16}).save()
    record.start(0, ["seed=0"], str(folder))
    record.fail("diverged")
    assert record.rows()[0]["chosen data.batch_size"] == 16
    assert record.main_metric == ("val/m", "min")
