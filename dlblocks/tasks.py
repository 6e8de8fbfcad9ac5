"""What follows from the task: target format, legal losses, output activation, metrics.

The net gives logits (or values). A loss that is fused with the output activation takes them as they
are; one that expects probabilities gets the output activation first, one that expects rates softplus. So sigmoid or softmax is never
applied twice, and never forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlblocks.errors import UserError, unknown
from dlblocks.registry import REGISTRY

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import MetricCollection

TASKS = ("regression", "binary", "multiclass", "multilabel")

# Task -> the heads it may have, the usual one first.
HEADS = {
    "regression": ("linear",),
    "binary": ("sigmoid", "softmax"),
    "multiclass": ("softmax",),
    "multilabel": ("sigmoid",),
}

# Key of a task -> the names in `Task.metrics`, told before torch is imported.
METRICS = {
    "regression": ("mae", "rmse", "r2"),
    "binary": ("accuracy", "auroc", "f1"),
    "binary_softmax": ("accuracy", "f1"),
    "multiclass": ("accuracy", "f1"),
    "multilabel": ("accuracy", "exact_match", "f1"),
}
# Stands for the main metric of the task, as in `val/metric`.
MAIN = "metric"

# Classes that squash an output, of which one is enough.
_SQUASHING = ("Sigmoid", "Softmax", "LogSoftmax", "LogSigmoid", "Softmin", "Softmax2d")


@dataclass(frozen=True)
class Task:
    """A task with its head.

    Args:
        name: `regression`, `binary`, `multiclass` or `multilabel`.
        head: the output activation: `linear`, `sigmoid` or `softmax`.
        outputs: classes (2 if binary), labels, or values for each instance.
    """

    name: str
    head: str
    outputs: int

    @property
    def net_outputs(self) -> int:
        """How many numbers the net gives for each instance."""
        return 1 if self.name == "binary" and self.head == "sigmoid" else self.outputs

    @property
    def key(self) -> str:
        """The name that losses declare in their tag `tasks`."""
        return "binary_softmax" if self.name == "binary" and self.head == "softmax" else self.name

    @property
    def default_loss(self) -> str:
        """Cross-entropy of the head's distribution, or squared error."""
        return {"regression": "mse", "binary": "bce", "multilabel": "bce"}.get(self.key, "cross_entropy")

    @property
    def main_metric(self) -> tuple[str, str]:
        """The metric that checkpoints are chosen by, and whether `max` or `min` is better."""
        return {"regression": ("rmse", "min"), "multilabel": ("f1", "max")}.get(
            self.name, ("accuracy", "max")
        )

    def legal_losses(self) -> list[str]:
        """The names of the losses that fit."""
        return [
            n for n in REGISTRY.names("loss") if self.key in (REGISTRY.get("loss", n).tags.get("tasks") or ())
        ]

    def check_loss(self, name: str, tags: Mapping[str, Any], where: str = "loss") -> None:
        """Refuse a loss that does not fit.

        Args:
            name: of the loss.
            tags: what it says of itself; see `losses.terms.contract`.
            where: the place in the config, for messages.

        Raises:
            UserError: names the losses that do.
        """
        tasks = tags.get("tasks")
        if tasks is None or self.key in tasks:
            return
        hint = ""
        if self.name == "binary":
            other = "softmax" if self.head == "sigmoid" else "sigmoid"
            if Task("binary", other, 2).key in tasks:
                hint = f" With head={other}, {name} fits."
        raise UserError(
            f"{where}={name}: does not fit the task {self.name} with head={self.head}; it is for"
            f" {', '.join(tasks).replace('binary_softmax', 'binary with head=softmax')}."
            f" Losses that fit: {', '.join(self.legal_losses())}.{hint}"
        )

    def net_outputs_for(self, expects: str) -> int:
        """How many numbers a loss that expects this wants of the net for each instance."""
        return self.net_outputs * (2 if expects == "mean_log_variance" else 1)

    def loss_input(self, output: Tensor, expects: str) -> Tensor:
        """What the loss takes, from what the net gives.

        Args:
            output: `(N, net_outputs)`.
            expects: the loss's tag: `logits`, `values`, `log_rate`, `rate`, `probabilities`,
                `log_probabilities`.
        """
        if self.net_outputs == 1 and self.name == "binary":
            output = output.squeeze(-1)
        if expects == "probabilities":
            return output.softmax(-1) if self.head == "softmax" else output.sigmoid()
        if expects == "log_probabilities":
            return output.log_softmax(-1)
        if expects == "rate":
            from torch.nn.functional import softplus

            return softplus(output)
        return output

    def loss_target(self, y: Tensor, target: str) -> Tensor:
        """What the loss compares with, in its format: `indices`, `indicators`, `distribution`, `values`."""
        if target == "indices":
            return y.long()
        if target == "distribution":
            from torch.nn.functional import one_hot

            return one_hot(y.long(), self.outputs).float()
        return y.float()

    def predict(self, output: Tensor, expects: str = "logits") -> Tensor:
        """The prediction from the net's output.

        Returns:
            multiclass: probabilities `(N, classes)`; binary: probability of class 1 `(N,)`, or of both
            `(N, 2)` with head=softmax; multilabel: probabilities `(N, labels)`; regression: values
            `(N, outputs)`, the exponential of the output where the loss models a log rate, its softplus where
            it models the rate itself, the mean where it models mean and variance.
        """
        if expects == "log_rate":
            return output.float().exp()
        if expects == "rate":
            return self.loss_input(output.float(), expects)
        if expects == "mean_log_variance":
            return output.float()[..., : self.outputs].contiguous()  # as torchmetrics wants it
        if self.head == "linear":
            return output.float()
        return self.loss_input(output.float(), "probabilities")

    def decide(self, prediction: Tensor) -> Tensor:
        """What a prediction of `predict` stands for, as the metrics take it.

        Returns:
            multiclass, binary: classes `(N,)`; multilabel: 0 or 1 `(N, labels)`; regression: the values.
        """
        if self.name == "regression":
            return prediction
        if self.name == "multilabel" or prediction.ndim == 1:
            return (prediction > 0.5).long()
        return prediction.argmax(-1)

    def metrics(self, prefix: str = "") -> MetricCollection:
        """The task's metrics, updated with `(predict(output), y)`."""
        import torchmetrics as tm

        if self.name == "regression":
            found: dict[str, tm.Metric | tm.MetricCollection] = {
                "mae": tm.MeanAbsoluteError(num_outputs=1),
                "rmse": tm.MeanSquaredError(squared=False),
                "r2": tm.R2Score(),
            }
        elif self.name == "multilabel":
            labels: dict[str, Any] = {"num_labels": self.outputs, "validate_args": False}
            found = {
                "accuracy": tm.classification.MultilabelAccuracy(**labels),
                "exact_match": tm.classification.MultilabelExactMatch(**labels),
                "f1": tm.classification.MultilabelF1Score(**labels),
            }
        elif self.key == "binary":
            found = {
                "accuracy": tm.classification.BinaryAccuracy(validate_args=False),
                "auroc": tm.classification.BinaryAUROC(validate_args=False),
                "f1": tm.classification.BinaryF1Score(validate_args=False),
            }
        else:
            classes: dict[str, Any] = {"num_classes": self.outputs, "validate_args": False}
            found = {
                "accuracy": tm.classification.MulticlassAccuracy(average="micro", **classes),
                "f1": tm.classification.MulticlassF1Score(**classes),
            }
        return tm.MetricCollection(found, prefix=prefix, compute_groups=False)


def resolve(task: str, head: str, outputs: int, data_task: str | None = None) -> Task:
    """The task and head to train for.

    Args:
        task: a name, or `auto` for the data set's own.
        head: `linear`, `sigmoid`, `softmax`, or `auto` for the task's usual one.
        outputs: classes, labels or values for each instance.
        data_task: what the labels are; None if not known.

    Raises:
        UserError: no such task or head, a head that does not fit the task, or labels that don't.
    """
    if task == "auto":
        if data_task is None:
            raise UserError(f"task=auto: nothing to take it from; give one of {', '.join(TASKS)}.")
        task = data_task
    if task not in TASKS:
        raise unknown("task", task, (*TASKS, "auto"), "task")
    # Two classes can be told apart by either kind of net; no other labels serve two tasks.
    either = {task, data_task} == {"binary", "multiclass"} and outputs == 2
    if data_task is not None and task != data_task and not either:
        fits = [data_task] + (["multiclass"] if data_task == "binary" else [])
        raise UserError(
            f"task={task}: the labels are those of a {data_task} task with {outputs} outputs."
            f" Tasks that fit: {', '.join(fits)}."
        )
    if head == "auto":
        head = HEADS[task][0]
    if head not in {name for heads in HEADS.values() for name in heads}:
        raise unknown("head", head, ("auto", "linear", "sigmoid", "softmax"), "head")
    if head not in HEADS[task]:
        raise UserError(
            f"head={head}: does not fit the task {task}. Heads that fit: {', '.join(HEADS[task])}."
        )
    return Task(task, head, outputs)


def check_output(net: nn.Module, expects: str, where: str = "model") -> None:
    """Refuse a net that ends in a sigmoid or softmax, which the output step or the loss applies again.

    The last module is found by following the ends of `nn.Sequential` containers.

    Raises:
        UserError: names the double sigmoid or softmax.
    """
    from torch import nn

    last = net
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    name = type(last).__name__
    if name not in _SQUASHING:
        return
    kind = "sigmoid" if "igmoid" in name else "softmax"
    raise UserError(
        f"{where}: the net ends in {name}, and the output is passed through {kind} once more"
        f" ({'the loss, which expects logits,' if expects == 'logits' else 'the output step'} applies it):"
        f" a double {kind} trains badly without any message. Let the net end before its {name}."
    )
