"""One copy of a module, trained a few steps the way the Trainer would, to see what comes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer, _init_optimizers_and_lr_schedulers
from lightning.pytorch.trainer.call import _call_lightning_module_hook
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.seeds import derive
from dlblocks.tuning.bystanders import bystanders, silent
from dlblocks.tuning.contents import fresh
from dlblocks.tuning.original import Original
from dlblocks.tuning.rates import base_rates, set_rates
from dlblocks.tuning.restore import detached_copy
from dlblocks.tuning.sizes import guessed_count
from dlblocks.tuning.stages import validating

# Of the hooks that come before the first batch.
_START = ("on_fit_start", "on_train_start", "on_train_epoch_start")
# Hooks of callbacks that take part.
_TOLD = frozenset(
    {"on_train_start", "on_train_batch_start", "on_train_batch_end"}
    | {"on_validation_batch_start", "on_validation_batch_end"}
)
# What `validation_step` returns: a tensor, which may be of anything, or in a mapping with a "loss".
RETURNED, RETURNED_LOSS = "what validation_step returns", "the loss that validation_step returns"


class NoLossError(UserError):
    """`training_step` returned no loss for any of some batches."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__(
            f"{type(module).__name__}.training_step: returned no loss, so its steps can't be judged. It must return the"
            " loss, or a mapping with a 'loss'; None leaves out a batch."
        )


class Trial:
    """A copy of a module with a fresh optimizer, inside a Trainer that `untouched` guards.

    Steps have what the Trainer's have: its precision, gradient clipping, accumulation, the module's own hooks of
    batches, gradients and validation, and, with several processes, the mean gradient. It begins with the hooks
    that begin a run and its first epoch. Loggers, schedulers, an `optimizer_step` of the module's own, where rates are
    often set, and callbacks take no part, but for the `callbacks` named.

    Args:
        trainer: in the middle of `fit`, before its first step.
        module: the module to copy; it is only read.
        rate: the learning rate of the first parameter group; the others keep their ratio to it.
        seed: of what the steps draw, such as dropout masks; trials of the same seed draw the same.
        alone: take no part in the talk of several processes, so that one of them may fail.
        callbacks: copies of them are told of the start of training and of each batch.

    Raises:
        UserError: the module optimises by hand, has not exactly one optimizer, takes an iterator of batches, or can't be
            copied.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        rate: float | None = None,
        seed: int = 0,
        alone: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.trainer = trainer
        self.module = detached_copy(module, trainer)
        self._origin = module
        self._unchecked: Original | None = Original(module)
        known = {id(trainer): trainer, id(module): self.module}
        self._callbacks = copy.deepcopy(list(callbacks), known)
        self._listed = [*self._callbacks, *bystanders(trainer.callbacks)]  # type: ignore[attr-defined]
        self._loggers = silent(trainer.loggers)
        self._own: dict[str, bool] = {}
        self._logged: dict[str, float] = {}
        self._metrics: dict[str, Metric] = {}
        self._shown: dict[str, Tensor] = {}
        # No method of this object: a module that refers to its trial would keep both until garbage is collected.
        note = partial(_note, self._logged, self._metrics, self._shown)
        for part in self.module.modules():
            if isinstance(part, pl.LightningModule):
                part.log = note  # type: ignore[method-assign]
        self._precision = copy.copy(trainer.precision_plugin)
        if (scaler := getattr(self._precision, "scaler", None)) is not None:
            self._precision.scaler = copy.deepcopy(scaler)  # type: ignore[attr-defined]
        self.seed = seed
        self._alone = alone
        self._processes = 1 if alone else trainer.world_size
        self.steps, self._batches = 0, 0
        self._takes_index = _takes_index(self.module.training_step)
        self.optimizer, self._schedulers = self._optimizer()
        self._wrapped = LightningOptimizer._to_lightning_optimizer(self.optimizer, trainer.strategy)
        self._bases = base_rates(self.optimizer)
        self._switch("train")
        if rate is not None:
            self.set_rate(rate)
        self._begin()

    def _begin(self) -> None:
        module = self.module
        if isinstance(module, LitModule):
            module.compiled = False  # each copy would be compiled anew
        _seed(derive(self.seed, "start"))
        with self._in_trainer():
            for name in _START:
                self._hook(name)
        if isinstance(module, LitModule) and self._alone:
            module._processes = 1

    @contextmanager
    def _in_trainer(self) -> Iterator[None]:
        """For a while the Trainer's module, optimizer, schedulers, progress and metrics are this trial's; nothing comes to
        a logger, and no callback is called."""
        trainer, strategy = self.trainer, self.trainer.strategy
        steps, epochs = _progress(trainer)
        mine: list[tuple[Any, str, Any]] = [
            (strategy, "_lightning_module", self.module),
            (strategy, "_model", self.module),
            (strategy, "_optimizers", [self.optimizer]),
            (strategy, "_lightning_optimizers", [self._wrapped]),
            (strategy, "lr_scheduler_configs", self._schedulers),
            (trainer, "callbacks", self._listed),
            (trainer, "loggers", self._loggers),
            (trainer._logger_connector, "_callback_metrics", self._shown),
            (trainer._logger_connector, "_logged_metrics", self._shown),
            (steps, "completed", steps.completed + self.steps),
            (epochs, "completed", epochs.completed + self._epochs()),
        ]
        before = [(holder, name, getattr(holder, name)) for holder, name, _ in mine]
        for holder, name, value in mine:
            setattr(holder, name, value)
        try:
            yield
        finally:
            for holder, name, value in before:
                setattr(holder, name, value)

    def _epochs(self) -> int:
        batches = self.trainer.num_training_batches
        return self._batches // int(batches) if 0 < batches < math.inf else 0

    def _hook(self, name: str, *arguments: Any) -> None:
        if name in _TOLD:
            for callback in self._callbacks:
                getattr(callback, name)(self.trainer, self.module, *arguments)
        if name not in self._own:
            # Lightning's own do nothing, but for the one that sets the mode, and to call them takes a seventh of a step.
            self._own[name] = name == "on_validation_model_eval" or is_overridden(name, self.module)
        if not self._own[name]:
            return
        _call_lightning_module_hook(self.trainer, name, *arguments, pl_module=self.module)

    @property
    def has_rate(self) -> bool:
        """Whether there is an optimizer at all."""
        return bool(self._bases)

    def set_rate(self, rate: float) -> None:
        """Set the first group's learning rate, and the others' in proportion.

        Raises:
            UserError: `configure_optimizers` gives None.
        """
        if not self._bases:
            raise UserError(_wrong_number(self.module, 0))
        set_rates(self.optimizer, self._bases, rate)

    def step(self, batches: Sequence[Any]) -> float | None:
        """One optimizer step on the gradients of some batches, which as in the Trainer each count by the number that are
        to be accumulated, also where an epoch ends with fewer, and one for which `training_step` returns None is left
        out. Their mean loss before it, over all processes; NaN if the loss is not finite, None if there is none."""
        _seed(derive(self.seed, f"step {self.steps}"))
        with self._in_trainer():
            losses = [self._train(batch, place, len(batches)) for place, batch in enumerate(batches)]
        self.steps += 1
        return self._mean_of([loss for loss in losses if loss is not None])

    def _train(self, batch: Any, place: int, count: int) -> Tensor | None:
        """The loss of one of the batches of a step, or None if it is left out; the last one ends it."""
        batch, index = fresh(batch), self._batches
        outputs: list[Any] = []

        def closure() -> Tensor | None:
            outputs[:] = [self._output(batch, index)]
            loss = _loss_of(outputs[0])
            if place == 0:
                self._hook("on_before_zero_grad", self.optimizer)
                self.optimizer.zero_grad()
            if loss is not None:
                shared = loss / self.trainer.accumulate_grad_batches
                self.module.backward(self._precision.pre_backward(shared, self.module))
                if self._unchecked is not None:
                    self._unchecked.check()
                    self._unchecked = None
            if place == count - 1:
                self._share_gradients()
            if loss is None:
                return None
            self._precision.post_backward(loss, self.module)
            return loss.detach()

        self._hook("on_train_batch_start", batch, index)
        if place == count - 1:
            self._precision.optimizer_step(self.optimizer, model=self.module, closure=closure)
            _progress(self.trainer)[0].completed += 1
        else:
            closure()
        self._batches += 1
        output, loss = outputs[0], _loss_of(outputs[0])
        told = {**output} if isinstance(output, Mapping) else {} if loss is None else {"loss": loss.detach()}
        self._hook("on_train_batch_end", told, batch, index)
        return None if loss is None else loss.detach()

    def bytes_of_any_size(self) -> int:
        """Of weights, buffers, gradients and the optimizer's state, whatever the size of a batch."""
        held: list[Tensor] = [*self.module.parameters(), *self.module.buffers()]
        held += [p.grad for p in self.module.parameters() if p.grad is not None]
        held += [leaf for leaf in tree_leaves([*self.optimizer.state.values()]) if isinstance(leaf, Tensor)]
        return sum(tensor.nbytes for tensor in held)

    def stay(self) -> None:
        """Give the copy the weights of the module again if they have moved by more than a hundredth of their length, or
        are not finite."""
        pairs = list(zip(self.module.parameters(), self._origin.parameters(), strict=True))
        with torch.no_grad():
            moved = math.fsum(float((here - origin).square().sum()) for here, origin in pairs)
            length = math.fsum(float(origin.square().sum()) for _, origin in pairs)
            if not moved <= 1e-4 * length:
                for here, origin in pairs:
                    here.copy_(origin)

    def gradient_lengths(self, batches: Sequence[Any]) -> tuple[float, float]:
        """The mean squared length of the gradients of some batches, and that of their mean gradient.

        Raises:
            NoLossError: `training_step` returned none for any batch.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        lengths, total = [], [torch.zeros_like(p) for p in parameters]
        for batch in batches:
            self.optimizer.zero_grad()
            with self._in_trainer():
                if (loss := self._loss(batch)) is None:
                    continue
                self.module.backward(loss)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
            lengths.append(sum(float(g.square().sum()) for g in gradients))
            for summed, gradient in zip(total, gradients, strict=True):
                summed += gradient
        self.optimizer.zero_grad()
        if not lengths:
            raise NoLossError(self.module)
        whole = sum(float((summed / len(lengths)).square().sum()) for summed in total)
        return sum(lengths) / len(lengths), whole

    def validate(
        self,
        batches: Sequence[Any],
        choose: Callable[[Sequence[str]], str | None] = lambda names: next(iter(names), None),
    ) -> float | None:
        """The mean validation loss on the instances of some batches, over all processes, in an epoch of its own.

        Args:
            batches: of the first validation loader.
            choose: takes names, and says which one is the loss: what the module logged, and before them `RETURNED` or
                `RETURNED_LOSS`. A `Metric` that is logged counts with its value at the end.

        Returns:
            None if there is no name, or none is chosen.
        """
        loop = self.trainer.fit_loop.epoch_loop.val_loop
        several = loop._is_sequential and loop.num_dataloaders > 1
        place = (0,) if several else ()
        takes_index = _takes_index(self.module.validation_step)
        values: dict[str, list[Tensor]] = {}
        weights: dict[str, list[int]] = {}
        self._logged.clear()
        self._metrics.clear()
        with self._in_trainer(), self._judging():
            self._hook("on_validation_start")
            self._hook("on_validation_epoch_start")
            for index, batch in enumerate(batches):
                batch = fresh(batch)
                self._hook("on_validation_batch_start", batch, index, *place)
                with self._precision.val_step_context():
                    output = self.module.validation_step(batch, *((index,) if takes_index else ()), *place)
                self._hook("on_validation_batch_end", output, batch, index, *place)
                if (loss := _loss_of(output)) is not None:
                    name = RETURNED_LOSS if isinstance(output, Mapping) else RETURNED
                    self._logged[name] = float(loss)
                for name, value in self._logged.items():
                    values.setdefault(name, []).append(torch.tensor(value))
                    weights.setdefault(name, []).append(guessed_count(batch) or 1)
                self._logged.clear()
            self._shown |= {
                name: torch.stack(logged).mean()
                for name, logged in values.items()
                if name not in (RETURNED, RETURNED_LOSS)
            }
            self._shown |= {name: _shown_of(metric) for name, metric in self._metrics.items()}
            if not self._alone:  # metrics are put together there, over all processes
                self._hook("on_validation_epoch_end")
                self._hook("on_validation_end")
        ends = self._logged | {name: _value_of(metric) for name, metric in self._metrics.items()}
        values |= {name: [torch.tensor(value)] for name, value in ends.items()}
        weights = {name: counts for name, counts in weights.items() if name not in ends}
        chosen = choose([*values])
        return self._mean_of(values[chosen], weights.get(chosen, ())) if chosen is not None else None

    def training_loss(self, batches: Sequence[Any]) -> float:
        """The mean of the training loss on the instances of some batches in evaluation mode, over all processes.

        Raises:
            NoLossError: `training_step` returned none for any batch.
        """
        with self._in_trainer(), self._judging():
            losses = [self._loss(batch) for batch in batches]
        given = [
            (loss, guessed_count(batch) or 1)
            for loss, batch in zip(losses, batches, strict=True)
            if loss is not None
        ]
        mean = self._mean_of([loss for loss, _ in given], [count for _, count in given])
        if mean is None:
            raise NoLossError(self.module)
        return mean

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """In evaluation, without gradients; an optimizer that trains at one point and judges at another (a
        schedule-free one) goes there and back. Each part of the module goes back to the mode it had."""
        with validating(self.trainer, self.module), torch.no_grad():
            self._switch("eval")
            self._hook("on_validation_model_eval")
            try:
                yield
                if self._unchecked is not None:
                    self._unchecked.check()
            finally:
                if is_overridden("on_validation_model_train", self.module):
                    self._hook("on_validation_model_train")
                self._switch("train")

    def _switch(self, mode: str) -> None:
        if (switch := getattr(self.optimizer, mode, None)) is not None:
            switch()

    def _loss(self, batch: Any) -> Tensor | None:
        return _loss_of(self._output(fresh(batch), self._batches))

    def _output(self, batch: Any, index: int) -> Any:
        with self._precision.train_step_context():
            return self.module.training_step(*((batch, index) if self._takes_index else (batch,)))

    def _optimizer(self) -> tuple[Optimizer, list[LRSchedulerConfig]]:
        name = type(self.module).__name__
        if not self.module.automatic_optimization:
            raise UserError(
                f"{name}: optimises by hand (automatic_optimization=False), so its"
                " steps can't be tried. Set learning rate and batch size yourself."
            )
        if is_param_in_hook_signature(self.module.training_step, "dataloader_iter", explicit=True):
            raise UserError(
                f"{name}.training_step: takes a dataloader_iter, so its steps can't be tried on given batches. Let"
                " it take a batch, or set learning rate and batch size yourself."
            )
        optimizers, schedulers = _init_optimizers_and_lr_schedulers(self.module)
        if len(optimizers) != 1:
            raise UserError(_wrong_number(self.module, len(optimizers)))
        return optimizers[0], schedulers

    def _share_gradients(self) -> None:
        """The mean gradient of all processes, as DistributedDataParallel leaves it: where only some of them used a
        parameter, the others count as zeros; none is made where no process did."""
        if self._processes == 1:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        used = used.to(self.trainer.strategy.root_device)
        distributed.all_reduce(used)
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self._processes

    def _mean_of(self, values: Sequence[Tensor], weights: Sequence[int] = ()) -> float | None:
        """The mean over all processes, with weights if given; None if no process has a value."""
        every = [*weights] or [1] * len(values)
        total = sum((value * weight for value, weight in zip(values, every, strict=True)), torch.tensor(0.0))
        weight = sum(every)
        if self._processes > 1:
            shared = torch.stack([total.float().cpu(), torch.tensor(float(weight))])
            shared = shared.to(self.trainer.strategy.root_device)
            distributed.all_reduce(shared)
            total, weight = shared[0], int(shared[1])
        if not weight:
            return None
        number = float(total) / weight
        return number if math.isfinite(number) else math.nan


def _wrong_number(module: pl.LightningModule, optimizers: int) -> str:
    return (
        f"{type(module).__name__}.configure_optimizers: gives {optimizers} optimizers; learning rate and batch size can be"
        " found for one."
    )


def _progress(trainer: pl.Trainer) -> tuple[Any, Any]:
    """What counts the steps and the epochs of a Trainer."""
    loop = trainer.fit_loop
    return (
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total,
        loop.epoch_progress.current,
    )


def _note(
    logged: dict[str, float],
    metrics: dict[str, Metric],
    shown: dict[str, Tensor],
    name: str,
    value: Any,
    *_: Any,
    **__: Any,
) -> None:
    if isinstance(value, Metric):
        metrics[name] = value
        return
    if isinstance(value, Tensor):
        value = value.detach()
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
        logged[name] = float(value)
        shown[name] = value if isinstance(value, Tensor) else torch.tensor(value)


def _shown_of(metric: Metric) -> Any:
    """What a metric has come to in this process, without a change to it."""
    to_sync, metric._to_sync = metric._to_sync, False
    value = metric.compute()
    metric._to_sync, metric._computed = to_sync, None
    return value


def _value_of(metric: Metric) -> float:
    """What a metric has come to, in this process alone; it then starts anew."""
    metric._to_sync = False
    value = metric.compute()
    metric.reset()
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else math.nan


def _takes_index(step: Callable[..., Any]) -> bool:
    """Whether a step takes the batch's number, which Lightning leaves out where it does not."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


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
