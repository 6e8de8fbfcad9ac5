"""Inside projects that configure themselves by LightningCLI and jsonargparse: classes by path, typed signatures."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.cli import LightningCLI, OptimizerCallable
from torch import Tensor, nn

import dlblocks
from dlblocks.registry import REGISTRY

# Lightning calls jsonargparse by names that this is about to rename.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
OURS = [
    pytest.param(block.load(), id=f"{kind}-{name}")
    for kind in ("activation", "loss", "optimizer")
    for name in REGISTRY.names(kind)
    if str((block := REGISTRY.get(kind, name)).target).startswith("dlblocks.") and not block.package
]


class Theirs(L.LightningModule):
    """A module of somebody who has never heard of dlblocks."""

    def __init__(self, act: nn.Module, loss: nn.Module, optimizer: OptimizerCallable) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(4, 1))
        self.loss, self.optimizer = loss, optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        x, y = batch
        value: Tensor = self.loss(self.net(x).squeeze(-1), y)
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def train_dataloader(self) -> Any:
        x = torch.randn(32, 4)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1)), batch_size=8)


def theirs(loss: dict[str, Any]) -> LightningCLI:
    config = {
        "model": {
            "act": {"class_path": "dlblocks.activations.maxout.Maxout", "init_args": {"pieces": 2}},
            "loss": loss,
            "optimizer": {"class_path": "dlblocks.optimizers.layerwise.Lamb", "init_args": {"lr": 0.05}},
        },
        "trainer": {"max_epochs": 1, **QUIET},
    }
    arguments = {"fit": config, "subcommand": "fit"}
    return LightningCLI(Theirs, args=arguments, save_config_callback=None, seed_everything_default=0)


def test_blocks_by_class_path_in_a_foreign_module() -> None:
    cli = theirs({"class_path": "dlblocks.losses.regression.Huber", "init_args": {"delta": 0.5}})
    assert cli.model.loss.delta == 0.5
    assert type(cli.trainer.optimizers[0]).__name__ == "Lamb"
    assert cli.trainer.global_step == 4


def test_a_wrong_type_is_refused_by_the_signature(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        theirs({"class_path": "dlblocks.losses.regression.Huber", "init_args": {"delta": "wide"}})
    assert "delta" in capsys.readouterr().err


@pytest.mark.parametrize("target", OURS)
def test_every_class_of_ours_is_importable_by_its_path_with_types(target: type) -> None:
    assert getattr(importlib.import_module(target.__module__), target.__qualname__) is target
    parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target, "block", skip={"params", "base"})
    given = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    for name, value in given.items():
        if isinstance(value, float):
            with pytest.raises(ArgumentError):
                parser.parse_object({"block": {name: "not a number"}})
    parser.parse_object({"block": given})


def test_our_module_and_data_by_lightning_cli(tmp_path: Path) -> None:
    config = {
        "model": {
            "task": "multiclass",
            "input_shape": [1, 8, 8],
            "outputs": 10,
            "activation": {"name": "elu", "alpha": 0.5},
        },
        "data": {"dataset": "digits", "batch_size": 64},
        "trainer": {"max_epochs": 1, **QUIET},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    cli = LightningCLI(
        dlblocks.LitModule,
        dlblocks.TableDataModule,
        args=["fit", "--config", str(path), "--model.optimizer", "sgd"],
        save_config_callback=None,
        seed_everything_default=0,
    )
    assert cli.model.hparams["activation"] == {"name": "elu", "alpha": 0.5}
    assert cli.trainer.callback_metrics["val/accuracy"] > 0.3
