"""A trial's steps are the Trainer's."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.errors import UserError
from dlblocks.tuning.batches import gather, open_loaders
from dlblocks.tuning.restore import untouched
from dlblocks.tuning.trial import Trial

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


class Foreign(L.LightningModule):
    """A module that has never heard of dlblocks: norm and dropout, two parameter groups, losses in mappings."""

    def __init__(self, optimizer: str = "adamw", dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(12, 3)
        )
        self.optimizer = optimizer
        self.learning_rate = 0.02

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        x, y = batch
        # In place, as some modules do; LBFGS sees a batch several times.
        x = x - 0.1 if self.optimizer == "lbfgs" else x.sub_(0.1)
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x - 0.1), y))

    def configure_optimizers(self) -> Any:
        first, rest = list(self.net[0].parameters()), [*self.net[1].parameters(), *self.net[4].parameters()]
        groups = [{"params": first}, {"params": rest, "lr": self.learning_rate / 10}]
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=self.learning_rate, max_iter=4)
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.optimizer]
        return kind(groups, lr=self.learning_rate)


def loader(n: int = 48, batch: int = 8, **more: Any) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=draw)
    return DataLoader(TensorDataset(x, torch.randint(3, (n,), generator=draw)), batch_size=batch, **more)


class Tries(Callback):
    """Takes some steps in a trial when `fit` starts, and keeps the weights it came to."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.weights: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            accumulate = trainer.accumulate_grad_batches
            train = gather(trainer, self.steps * accumulate).train
            trial = Trial(trainer, pl_module)
            for step in range(self.steps):
                self.losses.append(trial.step(train[step * accumulate : (step + 1) * accumulate]))
            self.weights = {name: value.clone() for name, value in trial.module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lbfgs"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_steps_are_the_trainers(optimizer: str, more: dict[str, Any]) -> None:
    if optimizer == "lbfgs" and "accumulate_grad_batches" in more:
        pytest.skip("the Trainer's closure sees one batch, so LBFGS can't accumulate there")
    steps = 4
    tries = Tries(steps)
    module = Foreign(optimizer)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = L.Trainer(max_epochs=2, max_steps=steps, callbacks=[tries], **QUIET, **more)
    trainer.fit(module, loader(), loader())
    trained = module.state_dict()
    assert any(not before[name].equal(value.to(before[name].dtype)) for name, value in trained.items())
    for name, value in trained.items():
        assert tries.weights[name].equal(value), name


def test_a_module_without_the_trial_trains_the_same() -> None:
    plain, tried = Foreign(dropout=0.5), Foreign(dropout=0.5)
    for module, callbacks in ((plain, []), (tried, [Tries(3)])):
        torch.manual_seed(5)
        shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(2))
        L.Trainer(max_epochs=3, callbacks=callbacks, **QUIET).fit(module, shuffled, loader())
    for name, value in plain.state_dict().items():
        assert tried.state_dict()[name].equal(value), name


class TwoOptimizers(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[4])]


def test_optimising_by_hand_is_refused() -> None:
    with pytest.raises(UserError, match=r"TwoOptimizers: optimises by hand"):
        L.Trainer(max_epochs=1, callbacks=[Tries(1)], **QUIET).fit(TwoOptimizers(), loader())


class Silent(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        return None


def test_a_step_without_a_loss_is_told() -> None:
    with pytest.raises(UserError, match=r"Silent.training_step: returned no loss"):
        L.Trainer(max_epochs=1, callbacks=[Tries(1)], **QUIET).fit(Silent(), loader())
