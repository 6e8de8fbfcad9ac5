"""The LightningModule: a net, a loss, an optimizer recipe and the task's metrics."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dlblocks import factory, shares, tasks
from dlblocks.data.format import DataFormat
from dlblocks.errors import UserError
from dlblocks.initializers.apply import initialize
from dlblocks.losses.terms import contract
from dlblocks.meter import Meter
from dlblocks.optimizers.build import optimizer as build_optimizer
from dlblocks.registry import REGISTRY, Spec, name_of, spell_out
from dlblocks.rules import spell_out_with_rules
from dlblocks.schedulers.build import lightning_config
from dlblocks.seeds import derive, generator

Batch = tuple[Tensor, Tensor]
_NARROW = frozenset({torch.float16, torch.bfloat16})
SPLITS = ("train", "val", "test")
# What init=auto looks at.
_INSTANCES = 256


class NonFiniteLossError(UserError):
    """The training loss became infinite or NaN."""


class LitModule(L.LightningModule):
    """Assembles blocks into something a Trainer trains.

    Every block is a name, a `{name: ..., params}` mapping, or a ready object. Names and mappings are
    kept in `hparams` as plain values, with every default written out, so that
    `LitModule.load_from_checkpoint(path)` rebuilds the module through the registry and runs no code
    from the file. A ready object has to be given again: `load_from_checkpoint(path, model=net)`.

    Args:
        task: `regression`, `binary`, `multiclass` or `multilabel`.
        input_shape: the shape of one instance, without the batch dimension.
        outputs: classes (2 if binary), labels, or values for each instance.
        model: the net; it gives logits or values `(N, outputs)`, one logit `(N, 1)` if binary with
            head=sigmoid.
        activation: of the net's hidden layers; `default` is what a predefined model has, relu in our own.
        init: of the weights, with `rules` for single parameters; see `initialize`. With `auto`, let it `meet`
            some of the inputs before training.
        bias_init: of the biases; `auto` is zeros, or with init=default what the layers came with.
        loss: `auto` for the task's own.
        head: the output activation; `auto` for the task's usual one.
        optimizer: the optimizer recipe.
        scheduler: the learning-rate scheduler.
        seed: of the weights.
        target_mean, target_std: for regression, the targets are standardised by them inside the loss;
            predictions and metrics are in the targets' own units.
        data_format: what instances are before they are scaled, which `predict` has to know; see `DataFormat`.

    Raises:
        UserError: an unknown name, a value that is not legal, or blocks that don't fit each other.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        *,
        task: str,
        input_shape: Sequence[int],
        outputs: int,
        model: Spec = "mlp",
        activation: Spec = "relu",
        init: Spec = "he_normal",
        bias_init: Spec = "auto",
        loss: Spec = "auto",
        head: str = "auto",
        optimizer: Spec = "adamw",
        scheduler: Spec = "constant",
        seed: int = 0,
        target_mean: Sequence[float] | None = None,
        target_std: Sequence[float] | None = None,
        data_format: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.task = tasks.resolve(task, head, outputs)
        self.data_format = None if data_format is None else DataFormat.from_plain(data_format)
        if name_of(loss) == "auto":
            loss = self.task.default_loss
        given: dict[str, Any] = {
            "model": _plain("model", model, "model"),
            "activation": _plain("activation", activation, "activation"),
            "init": _plain("initializer", init, "init"),
            "bias_init": _plain("initializer", bias_init, "bias_init"),
            "loss": _plain("loss", loss, "loss"),
            "optimizer": _plain("optimizer", optimizer, "optimizer"),
            "scheduler": _plain("scheduler", scheduler, "scheduler"),
        }
        self._recipe = given
        self.save_hyperparameters(
            {
                **{key: value for key, value in given.items() if isinstance(value, (str, dict))},
                "task": task,
                "head": head,
                "input_shape": list(input_shape),
                "outputs": outputs,
                "seed": seed,
                "target_mean": None if target_mean is None else list(target_mean),
                "target_std": None if target_std is None else list(target_std),
                "data_format": None if self.data_format is None else self.data_format.plain(),
            }
        )

        tags = _loss_contract(given["loss"], self.task)
        expects = tags.get("expects", "logits")
        self._expects, self._target = expects, tags.get("target", "values")
        self.net = self._build_net(tuple(input_shape), seed)
        tasks.check_output(self.net, expects)
        self.loss = factory.loss(given["loss"])
        if isinstance(given["loss"], dict):
            self._try_loss()
        self.register_buffer("target_mean", _row(target_mean, 0.0), persistent=False)
        self.register_buffer("target_std", _row(target_std, 1.0), persistent=False)
        self._scaled = target_mean is not None or target_std is not None
        if self._scaled and (expects == "log_rate" or tags.get("unscaled")):
            raise UserError(
                f"loss={name_of(given['loss'])}: is of the targets' own size, which standardised targets have"
                " not. Set data.scale_target=false."
            )

        named = isinstance(given["optimizer"], dict)
        block = REGISTRY.get("optimizer", name_of(given["optimizer"])) if named else None
        self._second_order = bool(block and block.tags.get("second_order"))
        self._weighs_classes = shares.weighs_classes(self.loss)
        self._meters = {s: Meter(s, self.task, self._prediction) for s in SPLITS}
        self._steps: list[tuple[int, float, Tensor]] = []
        # More than one while they train together; trials before that are each process's own.
        self._processes = 1
        # Whether to train with the net compiled, and then what to call in its place.
        self.compiled = False
        self._call: Callable[[Tensor], Tensor] | None = None

    @property
    def optimizer_spec(self) -> Spec:
        """The optimizer recipe, with the learning rate as it is now."""
        return self._recipe["optimizer"]

    @property
    def lr(self) -> float:
        """The learning rate that the optimizer is built with, where finders look for it.

        Raises:
            AttributeError: the optimizer is a ready object, or its entry has no `lr`.
        """
        spec = self._recipe["optimizer"]
        if not isinstance(spec, dict) or "lr" not in spec:
            raise AttributeError("lr")
        rate: float = spec["lr"]
        return rate

    @lr.setter
    def lr(self, value: float) -> None:
        self._recipe["optimizer"] = {**self._recipe["optimizer"], "lr": value}
        self.hparams["optimizer"] = self._recipe["optimizer"]

    def _build_net(self, input_shape: tuple[int, ...], seed: int) -> nn.Module:
        recipe = self._recipe
        # Layers draw their own first values from the global generator; its state stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            net = factory.model(
                recipe["model"],
                input_shape,
                self.task.net_outputs_for(self._expects),
                recipe["activation"],
                where="model",
            )
        if isinstance(recipe["model"], dict):
            noise = None
            if recipe["init"] == factory.FOLLOWS["init"]:
                noise = torch.randn(_INSTANCES, *input_shape, generator=generator(seed, "noise"))
            self._initialize(net, noise, seed)
        return net

    def _initialize(self, net: nn.Module, batch: Tensor | None, seed: int) -> None:
        recipe, draw = self._recipe, generator(seed, "weights")
        initialize(net, recipe["init"], recipe["bias_init"], generator=draw, batch=batch)

    def meet(self, x: Tensor) -> None:
        """Set the weights for these inputs, where init=auto says that they follow from them.

        Before this they are set for normally distributed inputs.

        Args:
            x: instances as the net takes them; the first 256 count.
        """
        if self._recipe["init"] == factory.FOLLOWS["init"] and isinstance(self._recipe["model"], dict):
            self._initialize(self.net, x[:_INSTANCES], self.hparams["seed"])

    def _try_loss(self) -> None:
        """Once on two instances of zeros: class weights of a wrong number are told now, not in training."""
        y = (
            torch.zeros(2)
            if self.task.name in ("binary", "multiclass")
            else torch.zeros(2, self.task.outputs)
        )
        with torch.no_grad():
            output = self.task.loss_input(
                torch.zeros(2, self.task.net_outputs_for(self._expects)), self._expects
            )
            self.loss(output, self.task.loss_target(y, self._target))

    def forward(self, x: Tensor) -> Tensor:
        """The net's output: logits or (standardised) values, `(N, net_outputs)`."""
        out: Tensor = self.net(x)
        return out

    def configure_model(self) -> None:
        if self._device_mesh is not None:  # Lightning sets it where the strategy divides the parameters
            from dlblocks.sharding import shard

            for part in (self.net, self.loss):
                shard(part, self._device_mesh["data_parallel"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, output, count = self._loss(batch, shared=self._processes > 1)
        self._meters["train"].add(batch_idx, loss, output, batch[1], count)
        trainer = self.trainer
        step, rate = trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]
        self._steps.append((step, rate, loss.detach()))
        # The host waits for the device only where the logger wants a value.
        if (step + 1) % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            self._check_finite()
            self.log("train/loss_step", loss.detach(), prog_bar=True)
        return loss

    def on_train_epoch_start(self) -> None:
        self._judged(False)

    def on_train_epoch_end(self) -> None:
        self._end("train")
        self._agree()
        # Checkpoints are saved after this.
        self._judged(True)

    def on_train_start(self) -> None:
        self._processes = self.trainer.world_size
        if self._processes > 1:
            shares.check_shared(self.loss, self._recipe["loss"])
        if self.compiled:
            from dlblocks.compiling import compiled

            self._call = compiled(self.net)

    def on_train_end(self) -> None:
        self._processes, self._call = 1, None
        self._judged(True)

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self._agree()
        self._judged(True)

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self._judged(False)

    def on_validation_epoch_start(self) -> None:
        self._check_finite()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate("val", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._end("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._end("test")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int = 0) -> Tensor:  # noqa: ARG002
        """Probabilities or values in the targets' units; shapes as in `Task.predict`."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        return self._prediction(self.net(x))

    def predict(self, x: Any) -> Tensor:
        """Predictions from instances as the data set has them: in their own units, not scaled.

        Args:
            x: a tensor, array or list `(N, *data_format.shape)`.

        Returns:
            Probabilities or values in the targets' units; shapes as in `Task.predict`.

        Raises:
            UserError: instances of another shape or that are not finite; a module that is in training mode, or
                doesn't know how its inputs were scaled.
        """
        if self.data_format is None:
            raise UserError(
                "predict: this module doesn't know how its inputs were scaled (it has no data_format);"
                " predict_step takes them as the net does."
            )
        if self.training:
            raise UserError("predict: the module is in training mode; call eval() first.")
        instances = self.data_format.check(x)
        weight = next(self.net.parameters(), self.target_mean)
        with torch.no_grad():
            return self.predict_step(self.data_format.prepare(instances).to(weight))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self._recipe
        if self._device_mesh is not None:
            self._check_divided_optimizer(recipe["optimizer"])
        optimizer = build_optimizer(recipe["optimizer"], self)
        metric, mode = self.task.main_metric
        config = lightning_config(
            recipe["scheduler"],
            optimizer,
            total_steps=self._total_steps,
            monitor=f"val/{metric}",
            mode=mode,
        )
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def _check_divided_optimizer(self, spec: Spec) -> None:
        from dlblocks.sharding import check_optimizer

        if isinstance(spec, torch.optim.Optimizer):
            raise UserError(
                "optimizer: a ready one holds the parameters from before they were divided; give a name or a partial."
            )
        assert self._device_mesh is not None
        check_optimizer(lambda net: build_optimizer(spec, net), self._device_mesh["data_parallel"])

    def _agree(self) -> None:
        if self._processes > 1:
            shares.agree_on_buffers(self.net)

    def _judged(self, judged: bool) -> None:
        """Tell optimisers that train at one point and judge at another (schedule-free ones) which is wanted."""
        for optimizer in self.trainer.optimizers:
            switch = getattr(optimizer, "eval" if judged else "train", None)
            if switch is not None:
                switch()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # In the middle of an epoch its metrics are half gathered.
        meter = self._meters["train"]
        if self.trainer.is_last_batch:
            meter.update()  # what stands for itself takes less room
        checkpoint["train_meters"] = shares.of_all(meter.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("train_meters", [])
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._forget_loader()
            # Values are taken over all processes, so it does not matter which one has what another number of them left.
            self._meters["train"].load_state_dicts(states[self.global_rank :: self.trainer.world_size])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._second_order:
            super().backward(loss, *args, **kwargs)
            return
        # The graph that is kept goes with the gradients, which are set to None before the next pass.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
            torch.autograd.backward(loss, create_graph=True)

    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None where the Trainer has no end."""
        total = self.trainer.estimated_stepping_batches
        if self.trainer.ckpt_path is not None:
            self._forget_loader()
        return int(total) if total != float("inf") else None

    def _forget_loader(self) -> None:
        """Let Lightning set up the training data again.

        It does so when the steps of a run are counted, before it knows a checkpoint's place in the data, and would leave
        that out. Nets are divided, and their steps counted, before a checkpoint is read; other nets after it.
        """
        self.trainer.fit_loop._combined_loader = None

    def _loss(self, batch: Batch, shared: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss, the net's output, and over how much the loss is a mean; None for the number of instances."""
        x, y = batch
        output: Tensor = self.net(x) if self._call is None else self._call(x)
        if output.dtype in _NARROW:  # the output activation and the loss would lose what the net kept
            output = output.float()
        input, target = self._compared(output, y)
        loss: Tensor = self.loss(input, target)
        if not (shared or self._weighs_classes):
            return loss, output, None
        count = shares.counted(self.loss, input, target)
        return (shares.shared_loss(loss, count) if shared else loss), output, count

    def criterion(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss of what the net gives, with the targets as the data has them."""
        loss: Tensor = self.loss(*self._compared(output, y))
        return loss

    def _compared(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss takes, and its targets."""
        target = self.task.loss_target(y, self._target)
        if self._scaled:
            target = (target - self.target_mean) / self.target_std
        return self.task.loss_input(output, self._expects), target

    def _prediction(self, output: Tensor) -> Tensor:
        prediction = self.task.predict(output, self._expects)
        return prediction * self.target_std + self.target_mean if self._scaled else prediction

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> Tensor:
        loss, output, count = self._loss(batch)
        self._meters[split].add(batch_idx, loss, output, batch[1], count)
        return loss

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of every hook it calls, some 40 times a step; `nn.Module` looks at each
        # value as a possible parameter. Past it, a step of the default run takes 8 % less.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _check_finite(self) -> None:
        """Stop at the first step whose loss is not finite, with what to try."""
        steps, self._steps = self._steps, []
        finite = torch.stack([loss for _, _, loss in steps]).isfinite() if steps else torch.ones(0)
        if bool(finite.all()):
            return
        step, rate, loss = steps[int(finite.int().argmin())]
        raise NonFiniteLossError(
            f"the training loss became {loss.item()} at step {step} (epoch {self.current_epoch}) with"
            f" learning rate {rate:g}. Try a smaller optimizer.lr (such as {rate / 10:g}),"
            " trainer.gradient_clip_val=1, or another init for this activation."
        )

    def _end(self, split: str) -> None:
        if split == "train":
            self._check_finite()
        values = self._meters[split].compute()
        main = f"val/{self.task.main_metric[0]}"
        # The values are those of all processes already; Lightning wants to hear that they are equal.
        self.log_dict({name: value for name, value in values.items() if name != main}, sync_dist=True)
        if main in values:
            self.log(main, values[main], prog_bar=True, sync_dist=True)


# Lightning inspects the signature at every step; found here it costs 5 % of a step less.
LitModule.training_step.__signature__ = inspect.signature(LitModule.training_step)  # type: ignore[attr-defined]


def _plain(kind: str, spec: Spec, where: str) -> Spec:
    """The whole description of a named block as plain values; a ready object as it is."""
    if not isinstance(spec, (str, Mapping)) or name_of(spec) == factory.FOLLOWS.get(where):
        return name_of(spec) if isinstance(spec, Mapping) else spec
    return spell_out_with_rules(spec, where) if where == "init" else spell_out(kind, spec, where)


def _loss_contract(loss: Spec, task: tasks.Task) -> Mapping[str, Any]:
    """What the loss expects of the net's output and of the target; a ready loss is taken to fit."""
    tags = contract(loss if isinstance(loss, dict) else task.default_loss)
    if isinstance(loss, dict):
        task.check_loss(name_of(loss), tags)
    return tags


def _row(values: Sequence[float] | None, default: float) -> Tensor:
    return torch.tensor([default] if values is None else list(values), dtype=torch.float32)
