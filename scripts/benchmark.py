"""Measure what dlblocks costs beside what users would otherwise use: `python scripts/benchmark.py`.

Every figure is a ratio of medians measured side by side in one run, A B A B ..., so that a drift of the
machine's speed falls on both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

SCRIPTS = Path(__file__).resolve().parent
TRAIN = [sys.executable, str(SCRIPTS / "train.py")]
HYDRA = [sys.executable, "-c", "import hydra"]
BARE = [sys.executable, "-c", "pass"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "suites", nargs="*", choices=[*SUITES, []], help=f"default: all but {', '.join(LONG)}"
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each side")
    arguments = parser.parse_args()
    table = Table("measured", "against", "median", "other", "ratio", "goal")
    failed = False
    for suite in arguments.suites or [name for name in SUITES if name not in LONG]:
        for row in SUITES[suite](arguments.repeats):
            table.add_row(*row)
            failed |= row[-1] == "0 other" != row[-2]
    Console().print(table)
    sys.exit(failed)


def startup(repeats: int) -> list[tuple[str, ...]]:
    """Help, composition, completion and import, as whole processes."""
    rows = []
    completion = {**os.environ, "COMP_LINE": "train.py activation=", "COMP_POINT": "20"}
    for name, command, env in (
        ("--help", [*TRAIN, "--help"], None),
        ("--cfg job", [*TRAIN, "--cfg", "job"], None),
        ("completion", [*TRAIN, "-sc", "query=bash"], completion),
    ):
        ours, other = _in_turn(lambda c=command, e=env: _process(c, e), lambda: _process(HYDRA), repeats)
        rows.append((name, "import hydra", _ms(ours), _ms(other), f"{ours / other:.2f}", "<= 2.5"))
    ours, other = _in_turn(
        lambda: _process([sys.executable, "-c", "import dlblocks"]), lambda: _process(BARE), repeats
    )
    rows.append(("import dlblocks", "bare python", _ms(ours), _ms(other), f"+{_ms(ours - other)}", "+30 ms"))
    return rows


def step(repeats: int) -> list[tuple[str, ...]]:
    """One training step of the default run, from the time of whole fits without validation."""
    ours, plain = _in_turn(_fit_dlblocks, _fit_plain, repeats)
    ours_again, lightning = _in_turn(_fit_dlblocks, _fit_lightning, repeats)
    return [
        ("training step", "plain PyTorch loop", _us(ours), _us(plain), f"{ours / plain:.2f}", "<= 1.0"),
        (
            "training step",
            "LightningModule",
            _us(ours_again),
            _us(lightning),
            f"{ours_again / lightning:.2f}",
            "<= 0.7",
        ),
    ]


def blocks(repeats: int) -> list[tuple[str, ...]]:
    """Our own blocks beside the fastest peer's."""
    from benchmark_blocks import blocks

    return blocks(repeats)


def finders(repeats: int) -> list[tuple[str, ...]]:
    """Found learning rates beside the best of a grid, and beside Lightning's."""
    from benchmark_finders import finders

    return finders(repeats)


def diagnosis(repeats: int) -> list[tuple[str, ...]]:
    """What a diagnosis says beside what then happens, and how many activations init=auto starts."""
    from benchmark_diagnosis import diagnosis

    return diagnosis(repeats)


def faults(repeats: int) -> list[tuple[str, ...]]:
    """A run that is killed again and again, and resumed; `--repeats` is the number of kills, 50 if not given."""
    from benchmark_faults import faults

    return faults(50 if repeats == 7 else repeats)


def fuzz(repeats: int) -> list[tuple[str, ...]]:
    """Damaged and hostile files; `--repeats` is the number of cases, 10,000 if not given. Exit code 1 if one ends otherwise."""
    from benchmark_fuzz import fuzz

    return fuzz(10_000 if repeats == 7 else repeats)


SUITES = {
    "startup": startup,
    "step": step,
    "blocks": blocks,
    "finders": finders,
    "diagnosis": diagnosis,
    "faults": faults,
    "fuzz": fuzz,
}
# Too long to be run unasked.
LONG = ("finders", "diagnosis", "faults", "fuzz")

EPOCHS = 20


def _fit_dlblocks() -> float:
    import dlblocks
    from dlblocks.assembly import build_data, build_module
    from dlblocks.recipe import check
    from dlblocks.trainer import build_callbacks, build_loggers, build_trainer

    recipe = check(
        dlblocks.compose(f"trainer.max_epochs={EPOCHS}", "callbacks=none", "+trainer.limit_val_batches=0")
    )
    data = build_data(recipe)
    module = build_module(recipe, data)
    with tempfile.TemporaryDirectory() as folder:
        words = {"run": folder}
        loggers = build_loggers(recipe.logger, words)
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        config = {**recipe.trainer, **quiet}
        trainer = build_trainer(config, build_callbacks(recipe.callbacks, words), loggers, Path(folder))
        return _per_step(lambda: trainer.fit(module, data), EPOCHS * len(data.train_dataloader()))


def _fit_plain() -> float:
    """The same net, data, optimizer, epochs, metric and log, written by hand with a DataLoader."""
    import csv

    import torch
    import torchmetrics

    x, y = _digits()
    torch.manual_seed(0)
    net = _net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loader = _loader(x, y)
    accuracy = torchmetrics.classification.MulticlassAccuracy(10, average="micro")
    mean = torchmetrics.MeanMetric()

    def fit() -> None:
        with tempfile.TemporaryFile("w", newline="") as file:
            log = csv.writer(file)
            for epoch in range(EPOCHS):
                for inputs, labels in loader:
                    output = net(inputs)
                    loss = torch.nn.functional.cross_entropy(output, labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    accuracy.update(output.detach(), labels)
                    mean.update(loss.detach())
                log.writerow([epoch, float(mean.compute()), float(accuracy.compute())])
                mean.reset()
                accuracy.reset()

    return _per_step(fit, EPOCHS * len(loader))


def _fit_lightning() -> float:
    """The same as a LightningModule would usually be written."""
    import warnings

    import lightning as L
    import torch
    import torchmetrics
    from lightning.pytorch.loggers import CSVLogger

    class Usual(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(10, average="micro")

        def training_step(self, batch, batch_idx):  # noqa: ARG002
            inputs, labels = batch
            output = self.net(inputs)
            loss = torch.nn.functional.cross_entropy(output, labels)
            self.accuracy(output, labels)
            self.log("train/loss", loss, on_epoch=True)
            self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    x, y = _digits()
    torch.manual_seed(0)
    loader = _loader(x, y)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=CSVLogger(folder, name="", version=""),
            log_every_n_steps=36,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Usual()
        return _per_step(lambda: trainer.fit(module, loader), EPOCHS * len(loader))


def _digits():
    import torch
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:1149] / 16, dtype=torch.float32), torch.tensor(y[:1149])


def _net():
    from torch import nn

    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def _loader(x, y):
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def _per_step(fit: Callable[[], object], steps: int) -> float:
    start = time.perf_counter()
    fit()
    return (time.perf_counter() - start) / steps


def _process(command: list[str], env: dict[str, str] | None = None) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _in_turn(ours: Callable[[], float], other: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Medians of both, measured in turn after one unmeasured call of each."""
    ours(), other()
    pairs = [(ours(), other()) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


if __name__ == "__main__":
    main()
