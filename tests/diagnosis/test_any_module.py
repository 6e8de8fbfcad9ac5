"""Whatever module, batch and optimizer others have: the right verdict, or one clear error, and no trace."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dlblocks
from dlblocks.diagnosis.signal import measure, weighs
from dlblocks.diagnosis.stepper import without_rate
from dlblocks.diagnosis.verdict import Verdict
from dlblocks.errors import UserError
from dlblocks.probing import copied


def batch(rows: int = 256) -> tuple[Tensor, Tensor]:
    """Four classes by the sign of two of the features."""
    x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def mlp(*ends: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4), *ends)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the signal shows, trials tell."""
    monkeypatch.setattr("dlblocks.diagnosis.diagnose.judge", lambda *_: Verdict("unclear", "unclear."))


class LowRank(nn.Module):
    """A frozen layer beside a trained one of rank 4 (LoRA)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = (
            nn.Parameter(torch.randn(inputs, 4) * 0.3),
            nn.Parameter(torch.zeros(4, outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down @ self.up


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Parameter(torch.randn(16, 32) * 0.3),
            nn.Parameter(torch.randn(32, 4) * 0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.first).relu() @ self.last


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(2, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x.view(-1, 8, 2).flip(1))[0][:, -1])


class Hyper(nn.Module):
    """Its layer sees no instances."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.layer = nn.Parameter(torch.randn(8)), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer(self.code).view(16, 4)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.one(left) + self.other(right)))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 4))


def new_weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 4))


def low_rank() -> nn.Module:
    return nn.Sequential(LowRank(16, 32), nn.ReLU(), LowRank(32, 4))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (4, 4)), layer, nn.Flatten(), nn.Linear(16, 4))


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (mlp, ["0", "2"]),
        (new_weight_norm, ["0", "2"]),
        (old_weight_norm, ["0", "2"]),
        (low_rank, ["0.base", "2.base"]),
        (Bare, [""]),
        (Recurrent, ["cells", "head"]),
        (Hyper, ["layer"]),
        (Named, ["net.0", "net.2"]),
        (attention, ["1.self_attn", "1.linear1", "1.linear2", "3"]),
    ],
)
def test_modules_of_others_train(build: Callable[[], nn.Module], layers: list[str]) -> None:
    torch.manual_seed(0)
    found = dlblocks.diagnose(build(), batch(), optimizer="adam", lr=0.01)
    assert found.verdict.outcome == "trains", found.lines()
    assert [layer.name for layer in found.signal.layers] == layers
    found.panel()


@pytest.mark.parametrize("kind", [tuple, dict])
@pytest.mark.usefixtures("tried")
def test_several_inputs_as_arguments(kind: type) -> None:
    x, y = batch()
    torch.manual_seed(0)
    parts = {"left": x[:, :8], "right": x[:, 8:]}
    inputs = parts if kind is dict else tuple(parts.values())
    found = dlblocks.diagnose(TwoInputs(), (inputs, y), optimizer="adam", lr=0.01)
    assert found.trials
    assert found.verdict.outcome == "trains"


def test_frozen_layers_have_no_gradient() -> None:
    found = dlblocks.diagnose(low_rank(), batch(), trials=False).signal
    assert all(layer.gradient is None and layer.useful is None for layer in found.layers)
    assert found.useful > 0


def test_an_order_of_the_instances_does_not_matter() -> None:
    x, y = batch()
    rows = y.argsort()
    torch.manual_seed(0)
    net = nn.Sequential(
        *[part for _ in range(6) for part in (nn.Linear(16, 16), nn.Sigmoid())], nn.Linear(16, 4)
    )
    dlblocks.initialize(net, "auto", batch=x)
    assert dlblocks.diagnose(net, (x[rows], y[rows]), optimizer="adam", lr=0.01).verdict.outcome == "trains"


def test_dead_units_of_an_activation_that_writes_over_its_inputs() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 4))
    nn.init.constant_(net[0].bias, -100.0)
    found = dlblocks.diagnose(net, batch(), optimizer="adam", lr=0.01, suggest=False)
    assert found.verdict.outcome == "will not start"
    assert found.signal.layers[0].dead == 1.0
    assert net[1].inplace is True


def binary(rows: int = 256) -> tuple[Tensor, Tensor]:
    x, y = batch(rows)
    return x, (y > 1).float()


@pytest.mark.parametrize(
    ("net", "data", "loss"),
    [
        (nn.Sequential(nn.Linear(16, 1), nn.Flatten(0)), binary(), F.binary_cross_entropy_with_logits),
        (
            nn.Sequential(nn.Linear(16, 1), nn.Sigmoid()),
            (binary()[0], binary()[1][:, None]),
            nn.BCELoss(),
        ),
        (nn.Linear(16, 1), (binary()[0], binary()[1][:, None] * 3 + 1), nn.MSELoss()),
        (
            nn.Linear(16, 4),
            (batch()[0], F.one_hot(batch()[1], 4).float()),
            lambda output, y: -F.cosine_similarity(output, y).mean(),
        ),
    ],
    ids=["logits without a second dimension", "probabilities", "regression", "a loss below 0"],
)
@pytest.mark.usefixtures("tried")
def test_trials_of_other_tasks(net: nn.Module, data: tuple[Tensor, Tensor], loss: object) -> None:
    fast = dlblocks.diagnose(net, data, loss=loss, optimizer="adam", lr=0.03)
    assert fast.trials
    assert fast.verdict.outcome == "trains", fast.lines()
    slow = dlblocks.diagnose(net, data, loss=loss, optimizer="adam", lr=1e-9, suggest=False)
    assert slow.verdict.outcome == "will not start", slow.lines()


@pytest.mark.usefixtures("tried")
def test_words_to_words_by_trials() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(6, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x)).transpose(1, 2)

    words = (torch.arange(64)[:, None] + torch.arange(5)) % 6
    torch.manual_seed(0)
    found = dlblocks.diagnose(Language(), (words[:, :-1], words[:, 1:]), optimizer="adam", lr=0.03)
    assert found.trials
    assert found.verdict.outcome == "trains"


def optimizers() -> Iterator[tuple[str, Callable[[nn.Module, float], object]]]:
    yield "mapping", lambda _, lr: {"name": "sgd", "lr": lr}
    yield "wrapped", lambda _, lr: {"name": "lookahead", "base": {"name": "sgd", "lr": lr}}
    yield "partial", lambda _, lr: partial(torch.optim.SGD, lr=lr)
    yield "ready", lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr)
    yield "ready, with a closure", lambda net, lr: torch.optim.LBFGS(net.parameters(), lr=lr)


@pytest.mark.parametrize(
    ("make", "lr"), [(make, 1e-9) for _, make in optimizers()] + [(make, 0.1) for _, make in optimizers()]
)
def test_the_rate_that_an_optimizer_has_counts(make: Callable[[nn.Module, float], object], lr: float) -> None:
    torch.manual_seed(0)
    net = mlp()
    kept = copy.deepcopy(net.state_dict())
    found = dlblocks.diagnose(net, batch(), optimizer=make(net, lr), suggest=False)
    assert found.verdict.outcome == ("trains" if lr > 1e-3 else "will not start"), found.lines()
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sophia", "adahessian"])
def test_second_order_at_a_rate(optimizer: str) -> None:
    torch.manual_seed(0)
    found = dlblocks.diagnose(mlp(), batch(), optimizer=optimizer, lr=0.1, suggest=False)
    assert all(layer.update for layer in found.signal.layers)


def test_a_scheduler_of_a_ready_optimizer_does_not_step_the_net() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 4))
    nn.init.zeros_(net[0].weight)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert dlblocks.diagnose(net, batch(), optimizer=optimizer).trials
    assert not net[0].weight.any()
    assert not optimizer.state


def test_large_nets_are_judged_by_the_signal() -> None:
    x, y = batch()
    faint = dlblocks.model("mlp", (16,), 4, "sigmoid", depth=10, width=32)
    dlblocks.initialize(faint, {"name": "normal", "std": 0.01})
    found = dlblocks.diagnose(faint, (x, y), trials=False)
    assert (found.verdict.outcome, found.trials) == ("will not start", ())
    assert dlblocks.diagnose(faint, x).verdict.outcome == "will not start"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda x, y: (x[:0], y[:0]), "has no instances"),
        (lambda x, y: (x * float("nan"), y), "not finite"),
        (lambda x, y: (x[:, :5], y), r"can't be run on \(256, 5\) of float32"),
        (lambda x, y: (x.double(), y), "of float64: .*dtype"),
        (lambda x, y: (x, y[:-1]), "not of equally many instances"),
        (lambda x, y: (x, x, y), r"can't be run on \(\(256, 16\) of float32"),
        (lambda *_: "words", "got str"),
    ],
)
def test_what_is_wrong_with_a_batch_is_said(given: Callable[..., object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        dlblocks.diagnose(mlp(), given(*batch()))


@pytest.mark.parametrize(
    ("net", "loss", "told"),
    [
        (torch.relu, None, "no torch.nn.Module that can be looked into"),
        (nn.Sequential(nn.Flatten()), None, "calls no layer with weights"),
        (mlp().requires_grad_(False), None, "nothing to train"),
        (mlp(), nn.CrossEntropyLoss(reduction="none"), "training needs one number"),
    ],
)
def test_what_is_wrong_with_a_net_or_a_loss_is_said(net: nn.Module, loss: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        dlblocks.diagnose(net, batch(), loss=loss)


def test_numpy_arrays_are_taken() -> None:
    x, y = batch()
    assert dlblocks.diagnose(mlp(), (x.numpy(), y.numpy()), trials=False).signal.finite


def test_no_trace_in_buffers_and_random_states() -> None:
    class Counting(nn.Module):
        """Puts another tensor in the place of its buffer, and draws from Python and NumPy."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return x + 1e-3 * (random.random() + np.random.rand())

    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, 32)), Counting(), nn.Linear(32, 4))
    kept = {name: (value, value.clone()) for name, value in net.named_buffers()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    dlblocks.diagnose(net, batch(), optimizer="adam", lr=0.01)
    for name, buffer in net.named_buffers():
        assert buffer is kept[name][0]
        assert torch.equal(buffer, kept[name][1])
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_copy_of_a_net_that_keeps_what_it_computed() -> None:
    net = old_weight_norm()
    history = net[0].weight.grad_fn
    made = copied(net)
    assert history is not None
    assert net[0].weight.grad_fn is history
    assert torch.equal(made[0].weight, net[0].weight)
    assert not weighs(nn.LayerNorm([2, 2]))


def test_time_that_comes_first_is_not_taken_for_instances() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(2, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x.transpose(0, 1))[0][-1])

    x, y = batch(32)
    steps = x.view(32, 8, 2)
    (cells, _) = measure(TimeFirst(), steps, y, F.cross_entropy).layers
    flat = steps.flatten(1)
    assert cells.variation == pytest.approx(
        float(flat.var(0, correction=0).mean() / flat.square().mean()), rel=1e-5
    )


def test_a_rate_that_is_still_to_be_found_does_not_count(tmp_path: Path) -> None:
    quiet = ("callbacks.progress_bar=null", "trainer.max_epochs=1")
    for rate, known in (("auto", False), ("0.1", True)):
        dlblocks.train(
            dlblocks.compose("data=wine", "optimizer=sgd", f"optimizer.lr={rate}", *quiet), tmp_path / rate
        )
        told = json.loads((tmp_path / rate / "diagnosis.json").read_text())
        assert [layer["update"] is not None for layer in told["signal"]["layers"]] == [known] * 3
    wrapped = {"name": "lookahead", "k": 5, "base": {"name": "sgd", "lr": 0.1}}
    assert without_rate(wrapped) == {"name": "lookahead", "k": 5, "base": {"name": "sgd"}}
