"""The picture of a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlblocks.results import write_table
from dlblocks.sweeps.picture import Drawn, Panel, _draw_curves, _draw_finals, _draw_map, draw


def axes() -> Axes:
    return Figure().subplots()


def drawn(folder: Path, lr: str, accuracy: float | None, rows: int = 3) -> Drawn:
    folder.mkdir(parents=True)
    if rows:
        curve = [
            {"epoch": i, "step": 10 * (i + 1), "seconds": 0.1 * i, "val/accuracy": 0.1 * i}
            for i in range(rows)
        ]
        write_table(curve, folder / "curves.csv")
    finals = {} if accuracy is None else {"val/accuracy": accuracy, "seconds": 2.0}
    status = "failed" if accuracy is None else "completed"
    return Drawn(f"lr={lr}", {"optimizer.lr": lr}, str(folder), finals, status)


def test_a_curve_for_each_run_that_has_one_and_a_word_for_the_others(tmp_path: Path) -> None:
    runs = [drawn(tmp_path / "a", "0.1", 0.5), drawn(tmp_path / "b", "1", None, rows=0)]
    here = axes()
    _draw_curves(here, runs, Panel("step", "val/accuracy"))
    assert [line.get_label() for line in here.lines] == ["lr=0.1", "lr=1: failed"]
    assert list(here.lines[0].get_xdata()) == [10, 20, 30]
    assert list(here.lines[0].get_ydata()) == [0.0, 0.1, 0.2]


def test_seeds_of_one_value_are_one_point_with_a_bar(tmp_path: Path) -> None:
    runs = [
        drawn(tmp_path / str(i), lr, y) for i, (lr, y) in enumerate([("0.1", 0.5), ("0.1", 0.7), ("10", 0.2)])
    ]
    here = axes()
    _draw_finals(here, runs, Panel("optimizer.lr", "val/accuracy"))
    points, _, (bars,) = here.containers[0]
    assert list(points.get_xdata()) == [0.1, 10.0]
    assert [round(y, 6) for y in points.get_ydata()] == [0.6, 0.2]
    assert [round(float(y), 6) for y in bars.get_segments()[0][:, 1]] == [0.5, 0.7]
    assert here.get_xscale() == "log"


def test_the_legend_covers_no_curve(tmp_path: Path) -> None:
    here = Figure(layout="constrained").subplots()
    _draw_curves(here, [drawn(tmp_path / "a", "0.1", 0.5)], Panel("epoch", "val/accuracy"))
    here.figure.draw_without_rendering()
    assert here.get_legend().get_window_extent().x0 > here.get_window_extent().x1


def test_a_value_without_a_result_is_marked_at_its_place(tmp_path: Path) -> None:
    runs = [
        drawn(tmp_path / str(i), lr, y)
        for i, (lr, y) in enumerate([("0.01", 0.5), ("1", None), ("0.1", 0.5), ("0.1", None)])
    ]
    here = axes()
    _draw_finals(here, runs, Panel("optimizer.lr", "val/accuracy"))
    crosses = [list(line.get_xdata()) for line in here.lines if line.get_marker() == "x"]
    assert crosses == [[1.0], [0.1]]
    assert [text.get_text() for text in here.texts] == ["failed", "1 of 2 failed"]
    assert here.get_xlim()[0] < 0.01 < 1 < here.get_xlim()[1]


def test_where_all_have_failed_all_are_marked(tmp_path: Path) -> None:
    here = axes()
    _draw_finals(here, [drawn(tmp_path / "a", "3", None)], Panel("optimizer.lr", "seconds"))
    assert [text.get_text() for text in here.texts] == ["failed"]


def test_metrics_of_the_best_checkpoint_are_called_so(tmp_path: Path) -> None:
    run = replace(drawn(tmp_path / "a", "0.1", 0.5), best=True)
    for y, label in (("val/accuracy", "val/accuracy of the best checkpoint"), ("seconds", "seconds")):
        here = axes()
        here.set_ylabel(y)
        _draw_finals(here, [run], Panel("optimizer.lr", y))
        assert here.get_ylabel() == label


def test_the_main_metric_is_named() -> None:
    assert Panel("epoch", "val/metric").named("rmse") == Panel("epoch", "val/rmse")
    assert Panel("init", "activation", "test/metric").named("f1").color == "test/f1"
    assert Panel("epoch", "val/loss").named("rmse").y == "val/loss"


def test_words_stand_side_by_side(tmp_path: Path) -> None:
    runs = [Drawn(name, {"regime": name}, str(tmp_path), {"seconds": 1.0}) for name in ("gd", "sgd")]
    here = axes()
    _draw_finals(here, runs, Panel("regime", "seconds"))
    assert [tick.get_text() for tick in here.get_xticklabels()] == ["gd", "sgd"]


def test_draws_a_file(tmp_path: Path) -> None:
    runs = [drawn(tmp_path / "a", "0.1", 0.5), drawn(tmp_path / "b", "3", None)]
    draw(runs, [Panel("epoch", "val/accuracy"), Panel("optimizer.lr", "seconds")], tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_a_heat_map_of_two_keys_at_one_value_of_a_third(tmp_path: Path) -> None:
    runs = [
        Drawn("", {"init": init, "activation": name, "model.depth": depth}, str(tmp_path), finals)
        for init, name, depth, finals in [
            ("zeros", "relu", "3", {"val/accuracy": 0.1}),
            ("auto", "relu", "3", {"val/accuracy": 0.8}),
            ("auto", "relu", "3", {"val/accuracy": 0.6}),
            ("auto", "tanh", "3", {}),
            ("auto", "relu", "20", {"val/accuracy": 0.0}),
        ]
    ]
    panel = Panel("init", "activation", "val/accuracy", {"model.depth": 3})
    here = axes()
    _draw_map(here, panel.chosen(runs), panel)
    assert [text.get_text() for text in here.texts] == ["0.10", "0.70", "failed", "failed"]
    assert here.get_title() == "val/accuracy (depth=3)"
    assert here.images[0].get_clim() == (0.0, 1.0)
    draw(runs, [panel], tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
