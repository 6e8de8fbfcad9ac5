"""Mixed precision on the CPU, for every model and loss that can be named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.registry import REGISTRY, names
from dlblocks.tasks import HEADS, resolve
from dlblocks.trainer import _unfit_precision, build_trainer

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "max_epochs": 2,
}
pytestmark = pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")

TASKS = {
    resolve(task, head, 3 if task == "multiclass" else 2).key: (task, head)
    for task in HEADS
    for head in HEADS[task]
}
LOSSES = [
    (loss, key)
    for loss in names("loss")
    for key in TASKS
    if key in (REGISTRY.get("loss", loss).tags.get("tasks") or ())
]


def targets(task: str, n: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    match task:
        case "regression":
            return torch.rand(n, 2, generator=draw) + 0.1  # every loss takes positive numbers
        case "multilabel":
            return torch.randint(2, (n, 2), generator=draw)
        case "multiclass":
            return torch.randint(3, (n,), generator=draw)
        case _:
            return torch.randint(2, (n,), generator=draw)


def trained(
    precision: str, key: str, shape: tuple[int, ...] = (4,), plugin: Any = None, **blocks: Any
) -> LitModule:
    task, head = TASKS[key]
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, targets(task, 32)), batch_size=8)
    module = LitModule(
        task=task,
        head=head,
        input_shape=shape,
        outputs=3 if task == "multiclass" else 2,
        **{"model": {"name": "mlp", "width": 8}, "optimizer": {"name": "sgd", "lr": 0.01}, **blocks},
    )
    clip = {"gradient_clip_val": 0.5} if plugin else {"precision": precision}
    trainer = L.Trainer(**QUIET, **clip, plugins=plugin)
    trainer.fit(module, loader, loader)
    return module


def compare(mixed: LitModule, full: LitModule) -> None:
    """Finite, in float32, and near the run in 32 bits: bfloat16 has 8 bits of a number."""
    losses = [m.trainer.callback_metrics["val/loss"] for m in (mixed, full)]
    assert losses[0].dtype is torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0.02)
    for name, value in full.net.state_dict().items():
        assert mixed.net.state_dict()[name].dtype is value.dtype
        torch.testing.assert_close(mixed.net.state_dict()[name], value, rtol=0.1, atol=0.03)


@pytest.mark.parametrize(("loss", "key"), LOSSES)
def test_every_loss_in_mixed_precision(loss: str, key: str) -> None:
    compare(*(trained(precision, key, loss=loss) for precision in ("bf16-mixed", "32-true")))


@pytest.mark.parametrize("activation", ["relu", "maxout", "glu", "prelu", "softplus"])
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_our_models_in_mixed_precision(model: str, activation: str) -> None:
    small = {"width": 8} if model == "mlp" else {"channels": [4, 4], "norm": "layer"}
    given = {"model": {"name": model, **small}, "activation": activation}
    compare(*(trained(p, "multiclass", (1, 8, 8), **given) for p in ("bf16-mixed", "32-true")))


@pytest.mark.parametrize("activation", names("activation"))
def test_every_activation_in_mixed_precision(activation: str) -> None:
    # Those that square or multiply grow without bound in 32 bits too, unless normalised.
    net = {"name": "mlp", "width": 8, "norm": "layer"}
    module = trained("bf16-mixed", "regression", model=net, activation=activation)
    assert module.trainer.callback_metrics["val/loss"].isfinite()
    assert all(value.isfinite().all() for value in module.net.state_dict().values())


def test_probabilities_are_not_rounded_before_the_loss() -> None:
    """In bfloat16 a sigmoid of 8 is 1, whose cost would be no number."""

    class Costs(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return nn.functional.binary_cross_entropy(input, target)

    module = LitModule(task="binary", input_shape=(1,), outputs=2, model=nn.Linear(1, 1), loss=Costs())
    module._expects = "probabilities"
    with torch.no_grad():
        module.net.weight.fill_(8.0)
        module.net.bias.zero_()
        with torch.autocast("cpu", torch.bfloat16):
            output = module.net(torch.ones(1, 1))
            assert output.dtype is torch.bfloat16
        wide = module.task.loss_input(output.float(), "probabilities")
    assert 0.9996 < float(wide) < 1
    assert float(output.sigmoid()) == 1


@pytest.mark.skipif(not torch.amp.is_autocast_available("cpu"), reason="no autocast on this CPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scaled_gradients_are_clipped_at_their_true_size(optimizer: str) -> None:
    """What 16-mixed does on a GPU, with the same scaler on the CPU; fused updates included."""
    rate = {"optimizer": {"name": optimizer, "lr": 0.02}}
    mixed, full = (
        trained("", "multiclass", plugin=MixedPrecision(kind, "cpu", scaler=scaler), **rate)
        for kind, scaler in (
            ("16-mixed", torch.amp.GradScaler("cpu", init_scale=2.0**10)),
            ("bf16-mixed", None),
        )
    )
    compare(mixed, full)
    assert mixed.trainer.precision_plugin.scaler.get_scale() == 2.0**10


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("16-mixed", "needs a GPU. On the CPU use bf16-mixed"),
        ("16-true", "overflows at 65504. On the CPU use bf16-true"),
    ],
)
def test_precisions_that_the_device_has_not(tmp_path: Path, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=f"trainer.precision={precision}: .*{message}"):
        build_trainer({"accelerator": "cpu", "precision": precision}, [], [], tmp_path)


def test_precisions_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert "use 16-mixed" in str(_unfit_precision("bf16-mixed", ["cuda"])).lower()
    assert _unfit_precision("16-mixed", ["cuda"]) is None
    assert "no double precision" in str(_unfit_precision("64-true", ["mps"]))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_runs_in_every_precision(tmp_path: Path, precision: str) -> None:
    overrides = (
        "data=wine",
        f"trainer.precision={precision}",
        "trainer=cpu",
        "callbacks=none",
        "logger=none",
    )
    result = dlblocks.train(dlblocks.compose(*overrides, "trainer.max_epochs=8"), tmp_path)
    assert result.metrics["test/accuracy"] > 0.8
