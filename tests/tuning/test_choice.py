"""The picture of a learning rate that was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dlblocks.tuning.choice import LearningRateChoice
from dlblocks.tuning.range_test import Curve

RATES = (1e-3, 1e-2, 1e-1)


def test_the_legend_hides_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curve = Curve(RATES, (1.0, 0.5, 2.0), (1.0, 0.6, 1.8))
    choice = LearningRateChoice(1e-2, "valley", "", "training loss", (), curve, {"valley": 1e-2})
    choice.draw(tmp_path / "lr_finder.png")
    drawn[0].draw_without_rendering()
    (axes,) = drawn[0].axes
    legend: Any = axes.get_legend()
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1
    assert legend.get_window_extent().x1 <= drawn[0].bbox.x1
