"""The LightningModule."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.errors import UserError
from dlblocks.module import LitModule, NonFiniteLossError
from dlblocks.registry import names
from dlblocks.results import Result
from dlblocks.tasks import HEADS

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}


def labels(task: str, n: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if task == "regression":
        return torch.randn(n, 2, generator=draw)
    return torch.randint(2, (n, 2) if task == "multilabel" else (n,), generator=draw)


def loader(task: str, n: int = 24, batch: int = 8) -> DataLoader[Any]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, labels(task, n)), batch_size=batch)


def module(task: str = "multiclass", **more: Any) -> LitModule:
    return LitModule(task=task, input_shape=(3,), outputs=2, model={"name": "mlp", "width": 4}, **more)


# Said of any torch DataLoader without worker processes.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")

CASES = [(task, head) for task, heads in HEADS.items() for head in heads]


@pytest.mark.parametrize(("task", "head"), CASES)
def test_fits_evaluates_and_predicts(task: str, head: str) -> None:
    net = module(task, head=head)
    trainer = L.Trainer(max_epochs=2, **QUIET)
    trainer.fit(net, loader(task), loader(task))
    assert {"train/loss", "val/loss", f"val/{net.task.main_metric[0]}"} <= set(trainer.callback_metrics)
    tested = trainer.test(net, loader(task), verbose=False)[0]
    assert tested["test/loss"] == pytest.approx(float(trainer.callback_metrics["test/loss"]))
    predicted = torch.cat(trainer.predict(net, loader(task)))
    assert len(predicted) == 24
    if task != "regression":
        assert ((predicted >= 0) & (predicted <= 1)).all()


def test_metrics_are_those_of_all_rows_at_once() -> None:
    """Unequal batches must not bias the mean loss, nor gathering the metrics."""
    net = module()
    trainer = L.Trainer(max_epochs=1, **QUIET)
    data = loader("multiclass", n=23, batch=7)
    values = trainer.validate(net, data, verbose=False)[0]
    x, y = data.dataset.tensors
    logits = net.eval()(x)
    assert values["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert values["val/accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))


def test_a_long_epoch_does_not_gather_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlblocks.meter import Meter

    whole = L.Trainer(**QUIET).validate(module(), loader("multiclass"), verbose=False)
    monkeypatch.setattr(Meter, "LIMIT", 5)
    assert L.Trainer(**QUIET).validate(module(), loader("multiclass"), verbose=False)[0] == pytest.approx(
        whole[0]
    )


# sparse_adam takes sparse gradients only; trac goes back to where it began while its way does not pay.
STAYING = ("sparse_adam", "trac")


@pytest.mark.parametrize("optimizer", [name for name in names("optimizer") if name not in STAYING])
def test_every_optimizer_trains_through_the_trainer(optimizer: str) -> None:
    net = module(optimizer=optimizer)
    before = copy.deepcopy(net.net.state_dict())
    trainer = L.Trainer(max_epochs=2, **QUIET)
    trainer.fit(net, loader("multiclass"), loader("multiclass"))
    assert all(not torch.equal(before[key], value) for key, value in net.net.state_dict().items())
    assert trainer.global_step == 6


class _Modes(L.Callback):
    """Whether the optimizer was at the point where it trains, by hook."""

    def __init__(self) -> None:
        self.seen: dict[str, set[bool]] = {}

    def _note(self, hook: str, trainer: L.Trainer) -> None:
        if not trainer.sanity_checking:
            training = trainer.optimizers[0].param_groups[0]["train_mode"]
            self.seen.setdefault(hook, set()).add(training)

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self._note("train", trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self._note("validation", trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: object) -> None:
        self._note("checkpoint", trainer)


def test_schedule_free_optimizers_are_judged_at_their_average(tmp_path: Path) -> None:
    modes = _Modes()
    net = module(optimizer="schedule_free_adamw")
    quiet = {**QUIET, "enable_checkpointing": True}
    checkpoints = L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="newest")
    trainer = L.Trainer(max_epochs=3, callbacks=[modes, checkpoints], **quiet)
    trainer.fit(net, loader("multiclass"), loader("multiclass"))
    assert modes.seen == {"train": {True}, "validation": {False}, "checkpoint": {False}}
    averaged = copy.deepcopy(net.net.state_dict())
    saved = torch.load(checkpoints.best_model_path, weights_only=True)["state_dict"]
    trainer.optimizers[0].train()  # type: ignore[attr-defined]
    for key, value in net.net.state_dict().items():
        assert not torch.equal(value, averaged[key])
        assert torch.equal(saved[f"net.{key}"], averaged[key])


@pytest.mark.parametrize("scheduler", names("scheduler"))
def test_every_scheduler_runs_by_its_interval(scheduler: str) -> None:
    net = module(scheduler=scheduler)
    trainer = L.Trainer(max_epochs=3, **QUIET)
    trainer.fit(net, loader("multiclass"), loader("multiclass"))
    config = trainer.lr_scheduler_configs[0]
    interval = dlblocks.registry.REGISTRY.get("scheduler", scheduler).tags["interval"]
    assert config.interval == interval


def test_seed_decides_the_weights_and_leaves_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = module(seed=1), module(seed=1), module(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in first.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[key])
    assert not torch.equal(first.net[0].weight, other.net[0].weight)


def test_init_default_leaves_what_the_layers_came_with() -> None:
    net = module(init="default").net
    bound = 1 / 3**0.5
    assert net[0].weight.abs().max() <= bound
    assert net[0].bias.abs().max() > 0
    assert module(init="he_normal").net[0].bias.abs().max() == 0
    assert module(init="default", bias_init="zeros").net[0].bias.abs().max() == 0


def test_checkpoints_hold_plain_values_and_rebuild_the_module(tmp_path: Path) -> None:
    net = module("binary", activation={"name": "elu", "alpha": 0.5}, loss="hinge", scheduler="one_cycle")
    settings = {**QUIET, "enable_checkpointing": True}
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **settings)
    trainer.fit(net, loader("binary"), loader("binary"))
    path = trainer.checkpoint_callback.best_model_path
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["activation"] == {"name": "elu", "alpha": 0.5}
    again = LitModule.load_from_checkpoint(path)
    assert again.hparams == net.hparams
    x = torch.randn(5, 3)
    assert torch.equal(again.eval()(x), net.eval()(x))
    tested = trainer.test(ckpt_path="best", dataloaders=loader("binary"), verbose=False)
    assert "test/accuracy" in tested[0]


def test_ready_objects_are_taken_as_they_are() -> None:
    net = nn.Linear(3, 2)
    built = LitModule(
        task="multiclass",
        input_shape=(3,),
        outputs=2,
        model=net,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.5),
    )
    assert built.net is net
    assert "model" not in built.hparams
    assert built.loss.label_smoothing == 0.1
    assert "init" in built.hparams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse"}, "loss=mse: does not fit the task multiclass"),
        ({"head": "sigmoid"}, "Heads that fit: softmax"),
        (
            {"loss": {"name": "cross_entropy", "weight": [1, 2, 3]}},
            "loss.weight: has 3 numbers for 2 classes",
        ),
        ({"activation": "eluu"}, "Did you mean 'elu'"),
        ({"bias_init": "he_normal"}, "bias_init"),
        ({"optimizer": {"name": "adamw", "lr": -1}}, "optimizer.lr=-1"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        module(**arguments)
    assert message in str(caught.value)


def test_a_net_that_ends_in_softmax_is_refused() -> None:
    with pytest.raises(UserError, match="double softmax"):
        LitModule(
            task="multiclass",
            input_shape=(3,),
            outputs=2,
            model=nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)),
            loss="cross_entropy",
        )


@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_loss_that_is_not_finite_names_step_and_rate(every: int) -> None:
    net = module(optimizer={"name": "sgd", "lr": 0.25})
    x, y = torch.randn(12, 3), torch.randint(2, (12,))
    x[4:6] = torch.inf
    data = DataLoader(TensorDataset(x, y), batch_size=2)
    trainer = L.Trainer(max_epochs=1, **{**QUIET, "log_every_n_steps": every})
    with pytest.raises(NonFiniteLossError, match=r"nan at step 2 \(epoch 0\) with learning rate 0.25. Try"):
        trainer.fit(net, data, data)


def test_standardised_targets_are_reported_in_their_own_units() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = 100 + 20 * x[:, :1] + 3 * x[:, 1:2]
    scaled = LitModule(
        task="regression",
        input_shape=(3,),
        outputs=1,
        model={"name": "mlp", "depth": 0},
        optimizer={"name": "lbfgs"},
        target_mean=[100.0],
        target_std=[20.0],
    )
    data = DataLoader(TensorDataset(x, y), batch_size=64)
    trainer = L.Trainer(max_epochs=5, **QUIET)
    trainer.fit(scaled, data, data)
    assert trainer.callback_metrics["val/rmse"] < 0.01
    assert torch.allclose(scaled.predict_step(x), y, atol=0.05)


def test_counts_refuse_standardised_targets() -> None:
    with pytest.raises(UserError, match=r"data\.scale_target=false"):
        LitModule(
            task="regression",
            input_shape=(3,),
            outputs=1,
            loss="poisson_nll",
            target_mean=[1.0],
            target_std=[2.0],
        )


def test_predictions_of_counts_are_rates() -> None:
    net = LitModule(task="regression", input_shape=(3,), outputs=1, loss="poisson_nll")
    x = torch.randn(4, 3)
    assert torch.allclose(net.predict_step(x), net(x).exp())


def test_a_loss_of_rates_gets_them_by_softplus() -> None:
    loss = {"name": "poisson_nll", "log_input": False}
    net = LitModule(task="regression", input_shape=(3,), outputs=1, loss=loss)
    x, y = torch.randn(4, 3), torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    rate = nn.functional.softplus(net(x))
    assert torch.allclose(net.predict_step(x), rate)
    expected = nn.functional.poisson_nll_loss(rate, y, log_input=False)
    assert torch.allclose(net.loss(*net._compared(net(x), y)), expected)
    with pytest.raises(UserError, match=r"data\.scale_target=false"):
        LitModule(
            task="regression", input_shape=(3,), outputs=1, loss=loss, target_mean=[1.0], target_std=[2.0]
        )


def test_the_net_is_callable_functionally() -> None:
    net = module().net
    params = {key: torch.stack([value, value * 2]) for key, value in net.named_parameters()}
    x = torch.randn(5, 3)
    outputs = torch.func.vmap(lambda p: torch.func.functional_call(net, p, (x,)))(params)
    assert torch.allclose(outputs[0], net(x), atol=1e-6)


def test_result_type_is_public() -> None:
    assert dlblocks.Result is Result
