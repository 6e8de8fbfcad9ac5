"""One copy of a module, trained a few steps the way the Trainer would, to see what comes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from dlblocks.errors import UserError
from dlblocks.seeds import derive
from dlblocks.tuning.rates import base_rates, set_rates
from dlblocks.tuning.restore import detached_copy


class Trial:
    """A copy of a module with a fresh optimizer, inside a Trainer that `untouched` guards.

    Steps have what the Trainer's have: its precision, gradient clipping, accumulation and, with several
    processes, the mean gradient. Callbacks, loggers and schedulers take no part.

    Args:
        trainer: in the middle of `fit`, before its first step.
        module: the module to copy; it is only read.
        rate: the learning rate of the first parameter group; the others keep their ratio to it.
        seed: of what the steps draw, such as dropout masks; trials of the same seed draw the same.
        alone: take no part in the talk of several processes, so that one of them may fail.

    Raises:
        UserError: the module optimises by hand, or has not exactly one optimizer.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        rate: float | None = None,
        seed: int = 0,
        alone: bool = False,
    ) -> None:
        self.trainer = trainer
        self.module = detached_copy(module, trainer)
        self._logged: dict[str, float] = {}
        self.module.log = self._note  # type: ignore[method-assign]
        self._precision = copy.copy(trainer.precision_plugin)
        if (scaler := getattr(self._precision, "scaler", None)) is not None:
            self._precision.scaler = copy.deepcopy(scaler)  # type: ignore[attr-defined]
        self.seed = seed
        self._processes = 1 if alone else trainer.world_size
        self.steps = 0
        self.optimizer = self._optimizer()
        self._bases = base_rates(self.optimizer)
        self.enter()
        self.module.train()
        self._switch("train")
        if rate is not None:
            self.set_rate(rate)

    def enter(self) -> None:
        """Take the place in the Trainer: hooks, gradient clipping and `self.trainer.optimizers` are this trial's."""
        self.trainer.strategy._lightning_module = self.module
        self.trainer.strategy.optimizers = [self.optimizer]
        self.trainer.callbacks = []  # type: ignore[attr-defined]

    def set_rate(self, rate: float) -> None:
        """Set the first group's learning rate, and the others' in proportion."""
        set_rates(self.optimizer, self._bases, rate)

    def step(self, batches: Sequence[Any]) -> float:
        """One optimizer step on the mean gradient of some batches; their mean loss before it, over all
        processes. NaN if the loss is not finite."""
        losses: list[Tensor] = []
        _seed(derive(self.seed, f"step {self.steps}"))

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            losses.clear()
            for batch in batches:
                loss = self._loss(batch)
                losses.append(loss.detach())
                self.module.backward(self._precision.pre_backward(loss / len(batches), self.module))
            self._share_gradients()
            return losses[-1]

        self._precision.optimizer_step(self.optimizer, model=self.module, closure=closure)
        self.steps += 1
        return self._mean(torch.stack(losses).mean())

    def gradient_lengths(self, batches: Sequence[Any]) -> tuple[float, float]:
        """The mean squared length of the gradients of some batches, and that of their mean gradient."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        lengths, total = [], [torch.zeros_like(p) for p in parameters]
        for batch in batches:
            self.optimizer.zero_grad()
            self.module.backward(self._loss(batch))
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
            lengths.append(sum(float(g.square().sum()) for g in gradients))
            for summed, gradient in zip(total, gradients, strict=True):
                summed += gradient
        self.optimizer.zero_grad()
        whole = sum(float((summed / len(batches)).square().sum()) for summed in total)
        return sum(lengths) / len(lengths), whole

    def validate(self, batches: Sequence[Any]) -> float | None:
        """The mean validation loss on some batches, over all processes: what `validation_step` returns, or
        else logs under a name with `loss` in it. None if it does neither."""
        losses = []
        with self._judging():
            for index, batch in enumerate(batches):
                self._logged.clear()
                with self._precision.val_step_context():
                    output = self.module.validation_step(tree_map(_cloned, batch), index)
                loss = _loss_of(output)
                if loss is None:
                    logged = [value for name, value in self._logged.items() if "loss" in name]
                    if not logged:
                        return None
                    loss = torch.tensor(logged[0])
                losses.append(loss)
        return self._mean(torch.stack(losses).mean())

    def training_loss(self, batches: Sequence[Any]) -> float:
        """The mean of the training loss on some batches in evaluation mode, over all processes."""
        with self._judging():
            losses = [self._loss(batch) for batch in batches]
        return self._mean(torch.stack(losses).mean())

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """In evaluation, without gradients; an optimizer that trains at one point and judges at another (a
        schedule-free one) goes there and back."""
        self._switch("eval")
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train()
            self._switch("train")

    def _switch(self, mode: str) -> None:
        if (switch := getattr(self.optimizer, mode, None)) is not None:
            switch()

    def _loss(self, batch: Any) -> Tensor:
        with self._precision.train_step_context():
            output = self.module.training_step(tree_map(_cloned, batch), self.steps)
        loss = _loss_of(output)
        if loss is None:
            raise UserError(
                f"{type(self.module).__name__}.training_step: returned no loss, so no learning rate can be"
                " judged. It must return the loss, or a mapping with a 'loss'."
            )
        return loss

    def _optimizer(self) -> Optimizer:
        if not self.module.automatic_optimization:
            raise UserError(
                f"{type(self.module).__name__}: optimises by hand (automatic_optimization=False), so its"
                " steps can't be tried. Set the learning rate yourself."
            )
        optimizers, _ = _init_optimizers_and_lr_schedulers(self.module)
        if len(optimizers) != 1:
            raise UserError(
                f"{type(self.module).__name__}.configure_optimizers: gives {len(optimizers)} optimizers; a"
                " learning rate can be found for one."
            )
        return optimizers[0]

    def _share_gradients(self) -> None:
        """The mean gradient of all processes, as DistributedDataParallel leaves it."""
        if self._processes == 1:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self._processes

    def _mean(self, value: Tensor) -> float:
        if self._processes > 1:
            value = value.to(self.trainer.strategy.root_device, copy=True).float()
            distributed.all_reduce(value)
            value = value / self._processes
        number = float(value)
        return number if math.isfinite(number) else math.nan

    def _note(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach()
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            self._logged[name] = float(value)


def _cloned(leaf: Any) -> Any:
    """A copy for each use, since a net may work in place."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _loss_of(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("loss")
    return output if isinstance(output, Tensor) and output.numel() == 1 else None


def _seed(value: int) -> None:
    # torch.manual_seed on a machine without a GPU writes down the stack for each device, 0.3 ms a call.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
