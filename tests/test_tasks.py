"""What follows from the task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY, names
from dlblocks.tasks import HEADS, METRICS, TASKS, Task, check_output, resolve

CASES = [Task(name, head, outputs) for name, heads in HEADS.items() for head in heads for outputs in (2,)]


@pytest.mark.parametrize("task", CASES, ids=lambda task: task.key)
def test_default_loss_is_legal(task: Task) -> None:
    task.check_loss(task.default_loss, REGISTRY.get("loss", task.default_loss).tags)
    assert task.default_loss in task.legal_losses()


@pytest.mark.parametrize("task", CASES, ids=lambda task: task.key)
@pytest.mark.parametrize("loss", [name for name in names("loss") if name != "sum"])
def test_a_loss_fits_or_is_refused_with_those_that_do(task: Task, loss: str) -> None:
    tags = REGISTRY.get("loss", loss).tags
    if loss in task.legal_losses():
        task.check_loss(loss, tags)
        return
    with pytest.raises(UserError, match=f"loss={loss}: does not fit the task {task.name}") as caught:
        task.check_loss(loss, tags)
    assert all(legal in str(caught.value) for legal in task.legal_losses())


@pytest.mark.parametrize("task", CASES, ids=lambda task: task.key)
def test_the_metrics_are_those_told_without_torch(task: Task) -> None:
    assert sorted(task.metrics()) == sorted(METRICS[task.key])
    assert task.main_metric[0] in METRICS[task.key]


def test_binary_losses_name_the_other_head() -> None:
    with pytest.raises(UserError, match="With head=softmax, cross_entropy fits"):
        Task("binary", "sigmoid", 2).check_loss("cross_entropy", REGISTRY.get("loss", "cross_entropy").tags)


@pytest.mark.parametrize(
    ("task", "net_outputs", "prediction"),
    [
        (Task("regression", "linear", 3), 3, (5, 3)),
        (Task("binary", "sigmoid", 2), 1, (5,)),
        (Task("binary", "softmax", 2), 2, (5, 2)),
        (Task("multiclass", "softmax", 4), 4, (5, 4)),
        (Task("multilabel", "sigmoid", 6), 6, (5, 6)),
    ],
)
def test_shapes(task: Task, net_outputs: int, prediction: tuple[int, ...]) -> None:
    assert task.net_outputs == net_outputs
    assert task.predict(torch.randn(5, net_outputs)).shape == prediction


def test_predictions_are_probabilities() -> None:
    logits = torch.randn(7, 4)
    assert torch.allclose(Task("multiclass", "softmax", 4).predict(logits), logits.softmax(-1))
    assert torch.allclose(Task("multilabel", "sigmoid", 4).predict(logits), logits.sigmoid())
    assert torch.allclose(Task("binary", "sigmoid", 2).predict(logits[:, :1]), logits[:, 0].sigmoid())
    assert torch.equal(Task("regression", "linear", 4).predict(logits), logits)
    assert torch.allclose(Task("regression", "linear", 4).predict(logits, "log_rate"), logits.exp())


@pytest.mark.parametrize("task", CASES, ids=lambda task: task.key)
def test_every_legal_loss_runs_and_is_least_at_the_truth(task: Task) -> None:
    """The value at outputs that say the truth is below the value at outputs that say the opposite."""
    from dlblocks.factory import loss as build_loss

    y = {"regression": torch.tensor([[1.0, 2.0]]), "multilabel": torch.tensor([[1.0, 0.0]])}.get(
        task.name, torch.tensor([1])
    )
    truth = torch.tensor([[-6.0, 6.0]]) if task.name != "multilabel" else torch.tensor([[6.0, -6.0]])
    if task.net_outputs == 1:
        truth = torch.tensor([[6.0]])
    for name in task.legal_losses():
        tags = REGISTRY.get("loss", name).tags
        if task.name == "regression":
            truth = y.log() if tags["expects"] == "log_rate" else y
        target = task.loss_target(y, tags["target"])
        twice = task.net_outputs_for(tags["expects"]) > task.net_outputs

        def widened(output: torch.Tensor, twice: bool = twice) -> torch.Tensor:
            return torch.cat([output, torch.zeros_like(output)], -1) if twice else output

        good, bad = (
            build_loss(name)(task.loss_input(widened(output), tags["expects"]), target)
            for output in (truth, -truth - 1)
        )
        assert good < bad, name


@pytest.mark.parametrize("task", CASES, ids=lambda task: task.key)
def test_main_metric_is_among_the_metrics(task: Task) -> None:
    assert f"val/{task.main_metric[0]}" in dict(task.metrics("val/"))


def test_metrics_against_hand_counts() -> None:
    metrics = Task("multiclass", "softmax", 3).metrics()
    metrics.update(torch.eye(3)[[0, 1, 2, 1]], torch.tensor([0, 1, 2, 2]))
    assert metrics.compute()["accuracy"] == 0.75
    metrics = Task("regression", "linear", 1).metrics()
    metrics.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    values = metrics.compute()
    assert values["mae"] == 1.0
    assert values["rmse"] == pytest.approx(2.0**0.5)
    assert values["r2"] == pytest.approx(1 - 4 / 4.5)


def test_auto_takes_the_data_sets_task() -> None:
    assert resolve("auto", "auto", 3, "multiclass") == Task("multiclass", "softmax", 3)
    assert resolve("auto", "softmax", 2, "binary") == Task("binary", "softmax", 2)
    assert resolve("multiclass", "auto", 2, "binary") == Task("multiclass", "softmax", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("auto", "auto", 2), "task=auto"),
        (("multiclas", "auto", 2), "Did you mean 'multiclass'"),
        (("regression", "auto", 10, "multiclass"), "labels are those of a multiclass task"),
        (("binary", "auto", 10, "multiclass"), "labels are those of a multiclass task"),
        (
            ("binary", "linear", 2),
            "head=linear: does not fit the task binary. Heads that fit: sigmoid, softmax",
        ),
        (("multiclass", "sigmoid", 3), "Heads that fit: softmax"),
        (("binary", "sigmod", 2), "Did you mean 'sigmoid'"),
    ],
)
def test_refusals(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("last", "kind"), [(nn.Softmax(-1), "softmax"), (nn.LogSoftmax(-1), "softmax"), (nn.Sigmoid(), "sigmoid")]
)
def test_a_double_sigmoid_or_softmax_is_named(last: nn.Module, kind: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), last))
    with pytest.raises(UserError, match=f"double {kind}"):
        check_output(net, "logits")
    check_output(net[:1], "logits")


def test_task_names_are_those_of_the_heads() -> None:
    assert set(TASKS) == set(HEADS)
