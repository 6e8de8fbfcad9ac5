"""Blocks that compute again: the same weights with less kept."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.recomputing import CheckpointActivations, blocks

pytestmark = pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), Residual(), nn.Sequential(Residual(), nn.Tanh()), nn.Linear(6, 3))


def trained(model: nn.Module, *callbacks: Any) -> dict[str, Tensor]:
    x, y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    module = LitModule(task="multiclass", input_shape=(4,), outputs=3, model=model)
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    torch.manual_seed(0)
    L.Trainer(max_epochs=3, accelerator="cpu", log_every_n_steps=1, callbacks=list(callbacks), **quiet).fit(
        module, loader, loader
    )
    return copy.deepcopy(model.state_dict())


def test_the_weights_are_those_of_ordinary_training() -> None:
    """Dropout masks and running statistics included."""
    plain, again = net(), net()
    expected, got = trained(plain), trained(again, CheckpointActivations())
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
    assert all("forward" not in vars(part) for part in again.modules())


def test_less_is_kept() -> None:
    def kept(callback: CheckpointActivations | None) -> int:
        model, sizes = net(), list[int]()
        module = LitModule(task="multiclass", input_shape=(4,), outputs=3, model=model)
        if callback:
            callback.on_train_start(None, module)  # type: ignore[arg-type]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.train()(torch.randn(512, 4))
        return sum(sizes)

    assert kept(CheckpointActivations()) < 0.5 * kept(None)


def test_blocks_are_the_outermost() -> None:
    model = net()
    assert list(blocks(model)) == [model[1], model[2]]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 7, batch_first=True), 2)
    assert list(blocks(encoder)) == list(encoder.layers)


def test_a_net_without_blocks_is_refused(tmp_path: Any) -> None:
    overrides = ("checkpoint_activations=true", "callbacks=none", "logger=none")
    with pytest.raises(UserError, match="checkpoint_activations=true: the net has no blocks"):
        dlblocks.train(dlblocks.compose(*overrides), tmp_path / "a")
    with pytest.raises(UserError, match="compile=true: does not go with checkpoint_activations"):
        dlblocks.train(dlblocks.compose(*overrides, "compile=true"), tmp_path / "b")
