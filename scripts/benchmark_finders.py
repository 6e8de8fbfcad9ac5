"""How good the found learning rates are: each beside the best of a grid, and beside Lightning's `lr_find`.

180 cases: 5 data sets, MLPs of 2 and 6 hidden layers and a convnet, 5 optimizers, 3 seeds; 8 epochs each. It takes
the better part of an hour on two cores.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

EPOCHS = 8
GRID = [10 ** (-4 + step / 2) for step in range(11)]
MODELS = {"mlp, 2": ["model=mlp"], "mlp, 6": ["model=mlp", "model.depth=6"], "convnet": ["model=convnet"]}
PICTURES = ("digits", "digit_pairs")
DATA = (*PICTURES, "breast_cancer", "wine", "diabetes")
OPTIMIZERS = {
    "sgd": ["optimizer=sgd"],
    "momentum": ["optimizer=sgd", "optimizer.momentum=0.9"],
    "adamw": ["optimizer=adamw"],
    "rmsprop": ["optimizer=rmsprop"],
    "lion": ["optimizer=lion"],
}


class Case(NamedTuple):
    data: str
    model: str
    optimizer: str
    seed: int


class Outcome(NamedTuple):
    case: Case
    ours: float
    lightnings: float | None
    ours_is_good: bool
    lightnings_is_good: bool
    of_grid_are_good: list[bool]


def finders(repeats: int, seeds: Sequence[int] = (0, 1, 2)) -> list[tuple[str, ...]]:
    cases = [
        Case(*parts)
        for parts in itertools.product(DATA, MODELS, OPTIMIZERS, seeds)
        if parts[1] != "convnet" or parts[0] in PICTURES
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(judge, cases))
    rows = []
    for name in ("all", *DATA, "convnet"):
        part = [o for o in outcomes if name in ("all", o.case.data, o.case.model)]
        ours = sum(o.ours_is_good for o in part)
        other = sum(o.lightnings_is_good for o in part)
        goal = ">= 95 %" if name == "all" else ""
        rows.append(
            (
                f"good rates, {name}",
                "lr_find",
                f"{ours} of {len(part)}",
                f"{other}",
                f"{ours / len(part):.1%}",
                goal,
            )
        )
    rows.extend(_spread(outcomes))
    return rows + _costs(repeats)


def judge(case: Case) -> Outcome:
    """What training at the grid's rates, at ours and at Lightning's comes to."""
    with _quiet():
        data, _ = _build(case)
        grid = [_score(case, rate) for rate in GRID]
        ours, _ = find(case)
        theirs, _ = lightning_finds(case)
        good = [
            rate is not None and _is_good(case, _score(case, rate), grid, data.n_val)
            for rate in (ours, theirs)
        ]
        of_grid = [_is_good(case, score, grid, data.n_val) for score in grid]
    return Outcome(case, ours, theirs, *good, of_grid)


def find(case: Case) -> tuple[float, float]:
    """Our rate, and the seconds it took."""
    from dlblocks import find_lr

    data, module = _build(case)
    trainer = _trainer()
    start = time.perf_counter()
    found = find_lr(trainer, module, data).lr
    return found, time.perf_counter() - start


def lightning_finds(case: Case) -> tuple[float | None, float]:
    """Lightning's rate, if it has one, and the seconds its 100 steps took."""
    from lightning.pytorch.tuner import Tuner

    data, module = _build(case)
    # With enough epochs for its 100 steps, where the data set is small.
    trainer = _trainer(max_epochs=100)
    start = time.perf_counter()
    finder = Tuner(trainer).lr_find(module, datamodule=data, num_training=100, update_attr=False)
    seconds = time.perf_counter() - start
    return (finder.suggestion() if finder else None), seconds


def _is_good(case: Case, score: float | None, grid: Sequence[float | None], instances: int) -> bool:
    """Within 2 points of the grid's best accuracy, or one standard error sqrt(p (1 - p) / n) of the accuracy, if
    that is larger; within 5 % of its loss for regression."""
    trained = [value for value in grid if value is not None and math.isfinite(value)]
    if score is None or not math.isfinite(score):
        return False
    if case.data == "diabetes":
        return score <= 1.05 * min(trained)
    best = max(trained)
    errors = [math.sqrt(p * (1 - p) / instances) for p in (best, score)]
    return best - score <= max(0.02, *errors) + 1e-9


def _score(case: Case, rate: float) -> float | None:
    """The accuracy on the validation set after 8 epochs, or the loss for regression; None if it diverged."""
    from dlblocks import UserError

    data, module = _build(case, rate)
    try:
        _trainer(limit_val_batches=0).fit(module, data)
    except UserError:
        return None
    values = _trainer().validate(module, data, verbose=False)[0]
    return values["val/loss" if case.data == "diabetes" else "val/accuracy"]


def _build(case: Case, rate: float | None = None) -> tuple[Any, Any]:
    import dlblocks
    from dlblocks.assembly import build_data, build_module
    from dlblocks.recipe import check

    overrides = [f"data={case.data}", *MODELS[case.model], *OPTIMIZERS[case.optimizer], f"seed={case.seed}"]
    if rate is not None:
        overrides.append(f"optimizer.lr={rate}")
    recipe = check(dlblocks.compose(*overrides))
    data = build_data(recipe)
    return data, build_module(recipe, data)


def _trainer(**more: Any) -> Any:
    import lightning as L

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return L.Trainer(
        **{"accelerator": "cpu", "max_epochs": EPOCHS, **dict.fromkeys(quiet, False), **more},
        num_sanity_val_steps=0,
    )


def _spread(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, ...]]:
    """In how many groups of the same data, model and optimizer all seeds get rates within a factor of 4; and in how
    many that is possible with good rates only: two neighbours in the grid are good for each seed."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.case[:3], []).append(outcome)

    def close(rates: list[float | None]) -> bool:
        found = [rate for rate in rates if rate]
        return len(found) == len(rates) and max(found) / min(found) < 4

    def possible(group: list[Outcome]) -> bool:
        places = range(len(GRID) - 1)
        return any(all(any(o.of_grid_are_good[at : at + 2]) for o in group) for at in places)

    ours = sum(close([o.ours for o in group]) for group in groups.values())
    other = sum(close([o.lightnings for o in group]) for group in groups.values())
    share = f"{ours / len(groups):.0%}"
    yield "same rate to x4 over seeds", "lr_find", f"{ours} of {len(groups)}", f"{other}", share, "100 %"
    most = sum(map(possible, groups.values()))
    yield "good rates within x4 exist", "", f"{most} of {len(groups)}", "", f"{most / len(groups):.0%}", ""


def _costs(repeats: int) -> list[tuple[str, ...]]:
    rows = []
    for data, model in itertools.product(DATA, MODELS):
        if model == "convnet" and data not in PICTURES:
            continue
        case = Case(data, model, "adamw", 0)
        with _quiet():
            find(case), lightning_finds(case)
            pairs = [(find(case)[1], lightning_finds(case)[1]) for _ in range(repeats)]
        ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = f"{ours / other:.2f}"
        rows.append((f"time, {data}, {model}", "lr_find", f"{ours:.2f} s", f"{other:.2f} s", ratio, "<= 2.0"))
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One thread, no messages, and Lightning's files in a folder that is then removed."""
    import torch

    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            os.chdir(before)
