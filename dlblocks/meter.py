"""The mean loss and the metrics of one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection, SumMetric

from dlblocks.tasks import Task


class _Metrics(NamedTuple):
    """The sum of the losses, the number of instances, and the task's metrics."""

    total: SumMetric
    count: SumMetric
    of_task: MetricCollection


class Meter:
    """The mean loss and the metrics of one split.

    Outputs are gathered, and the metrics updated for many batches at once: an update costs more than
    a small net's whole step, whatever the number of rows.
    """

    # Rows gathered before an update (about), so that a long epoch does not fill the memory.
    LIMIT = 8192

    def __init__(self, split: str, task: Task, predict: Callable[[Tensor], Tensor]) -> None:
        self.split = split
        self._task = task
        self._predict = predict
        # Made at the first update: most of what a copy of an untrained module costs would be these.
        self._metrics: _Metrics | None = None
        self._last: int | None = None
        self._losses: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._counts: list[Tensor | int] = []

    def add(self, batch_idx: int, loss: Tensor, output: Tensor, y: Tensor, count: Tensor | None) -> None:
        """Gather one batch, whose loss is a mean over `count`, or over its instances.

        An optimizer that evaluates a batch several times counts it once.
        """
        if batch_idx == self._last:
            return
        self._last = batch_idx
        self._losses.append(loss.detach())
        self._outputs.append(output.detach())
        self._targets.append(y)
        self._counts.append(len(y) if count is None else count)
        if len(self._targets) * len(y) >= self.LIMIT:
            self.update()

    def compute(self) -> dict[str, Tensor]:
        """The values since the last call, over all processes."""
        self.update()
        metrics = self._made()
        mean = metrics.total.compute() / metrics.count.compute()
        values = {f"{self.split}/loss": mean, **metrics.of_task.compute()}
        for metric in (metrics.total, metrics.count, metrics.of_task):
            metric.reset()
        self._last = None
        return values

    def state_dict(self) -> dict[str, Any]:
        """What came since the last `compute`, as tensors and plain values; empty if nothing did."""
        if self._last is None:
            return {}
        metrics = self._made()
        return {
            "last": self._last,
            "gathered": [
                list(values) for values in (self._losses, self._outputs, self._targets, self._counts)
            ],
            "total": dict(metrics.total.metric_state),
            "count": dict(metrics.count.metric_state),
            "of_task": {name: dict(metric.metric_state) for name, metric in metrics.of_task.items()},
        }

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `state_dict` gave, in one process or in several.

        Raises:
            ValueError: labels that are none; metrics would count up to them.
        """
        self._metrics, self._last = None, None
        self._losses, self._outputs, self._targets, self._counts = [], [], [], []
        for state in filter(None, states):
            self._last = state["last"]
            losses, outputs, targets, counts = state["gathered"]
            top = max(self._task.outputs, 2)
            if any(((y < 0) | (y >= top)).any() for y in targets if not y.is_floating_point()):
                raise ValueError(f"labels must be from 0 to {top - 1}")
            self._losses += losses
            self._outputs += outputs
            self._targets += targets
            self._counts += counts
            metrics = self._made()
            of_task = dict(metrics.of_task.items())
            for metric, values in (
                (metrics.total, state["total"]),
                (metrics.count, state["count"]),
                *((of_task[name], values) for name, values in state["of_task"].items()),
            ):
                metric.merge_state(values)
                metric._update_count += 1  # which merging leaves at 0, so that `compute` would warn

    def _made(self) -> _Metrics:
        if self._metrics is None:
            # Not MeanMetric: told to let NaN through, torchmetrics 1.9 drops the weights.
            self._metrics = _Metrics(
                total=SumMetric(nan_strategy="disable"),
                count=SumMetric(nan_strategy="disable"),
                of_task=self._task.metrics(f"{self.split}/"),
            )
        return self._metrics

    def update(self) -> None:
        """Update the metrics with what was gathered."""
        if self._losses:
            device = self._losses[0].device
            metrics = self._made()
            for metric in (metrics.total, metrics.count, metrics.of_task):
                metric.to(device)
            counts = self._counts
            on_device = isinstance(counts[0], Tensor)
            sizes = torch.stack(counts) if on_device else torch.tensor(counts, device=device)  # type: ignore[arg-type]
            metrics.total.update(torch.stack(self._losses) * sizes)
            metrics.count.update(sizes)
            metrics.of_task.update(self._predict(torch.cat(self._outputs)), torch.cat(self._targets))
            self._losses, self._outputs, self._targets, self._counts = [], [], [], []
