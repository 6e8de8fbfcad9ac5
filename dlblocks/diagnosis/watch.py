"""Watch the signal of every layer while a net trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.signal import weighs
from dlblocks.results import write_table

COLUMNS = ("deviation", "between_inputs", "dead", "gradient")
# Bounds of what is reported.
_DEAD, _VANISHED, _EXPLODED = 0.9, 1e-6, 1e6
# A loss that has fallen by less than this after so many epochs is where it began.
_FALLEN, _EPOCHS = 0.02, 3


class SignalWatch(Callback):
    """Looks at each layer every few steps, and reports what goes wrong while a net trains.

    Of each layer with weights: the deviation of what reaches it, that between the inputs of a batch, the share of
    features that reach it unchanged for all inputs (dead or saturated units of the layer before), and the norm of
    its gradient. They are computed on the device and fetched once an epoch, so no step waits for them.

    Reported, each once, with the layer: dead units (over 90 %), gradients that vanish or explode (the first layer's
    below 1e-6 or above 1e6 times the last one's), and a loss that has not fallen after 3 epochs. The logger gets
    `signal/dead` (the largest share), `signal/gradient_ratio` (first layer over last) and `signal/between_inputs`
    (the smallest). At the end of training `signal_watch.csv` and `signal_watch.png` are written.

    Args:
        every_n_steps: steps from one look to the next.
        dirpath: where table and picture go; the Trainer's root folder if None.
    """

    def __init__(self, every_n_steps: int = 50, dirpath: str | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: must be at least 1.")
        self.every_n_steps = every_n_steps
        self.dirpath = dirpath
        self.rows: list[dict[str, Any]] = []
        self.findings: list[Finding] = []
        self._layers: dict[str, nn.Module] = {}
        self._hooks: list[RemovableHandle] = []
        self._forward: dict[str, Tensor] = {}
        self._looks: list[tuple[int, list[str], Tensor]] = []
        self._losses: list[Tensor] = []
        self._means: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "means": self._means,
            "looks": self._looks,
            "losses": self._losses,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._means = list(state_dict["rows"]), list(state_dict["means"])
        self._looks, self._losses = list(state_dict["looks"]), list(state_dict["losses"])
        self.findings = [Finding(**finding) for finding in state_dict["findings"]]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._layers = {name: module for name, module in pl_module.named_modules() if weighs(module)}

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if trainer.global_step % self.every_n_steps or self._hooks:
            return
        self._forward = {}
        self._hooks = [
            module.register_forward_pre_hook(self._noter(name)) for name, module in self._layers.items()
        ]

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
    ) -> None:
        if not self._hooks:
            return
        self._unhook()
        seen = []
        for name, forward in self._forward.items():
            weight = self._layers[name].weight
            assert isinstance(weight, Tensor)
            gradient = forward.new_zeros(()) if weight.grad is None else weight.grad.norm().to(forward)
            seen.append(torch.cat([forward, gradient[None]]))
        if seen:
            self._looks.append((trainer.global_step, list(self._forward), torch.stack(seen)))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._losses:
            self._means.append(float(torch.stack(self._losses).mean()))
            self._losses = []
        new = [row for look in self._looks for row in _rows(*look)]
        self._looks = []
        self.rows += new
        found = [finding for finding in (*_of_signal(new), *self._of_loss()) if finding not in self.findings]
        self.findings += found
        if trainer.is_global_zero:
            for finding in found:
                Console(soft_wrap=True).print(
                    f"{finding.where}: {finding.message}", markup=False, highlight=False
                )
        if new:
            pl_module.log_dict(
                {
                    "signal/dead": max(row["dead"] for row in new),
                    "signal/between_inputs": min(row["between_inputs"] for row in new),
                    "signal/gradient_ratio": _ratio([row for row in new if row["step"] == new[-1]["step"]]),
                },
                sync_dist=True,
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if not (self.rows and trainer.is_global_zero):
            return
        folder = Path(self.dirpath or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_table(self.rows, folder / "signal_watch.csv")
        draw_watch(self.rows, folder / "signal_watch.png")

    def on_exception(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        self._unhook()

    def _noter(self, name: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name in self._forward or not (inputs and isinstance(inputs[0], Tensor)):
                return
            flat = inputs[0].detach().flatten(1).float()
            same = (flat == flat[0]).all(0).float().mean()
            between = flat.var(0, correction=0).mean().sqrt()
            self._forward[name] = torch.stack([flat.std(correction=0), between, same])

        return note

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _of_loss(self) -> Iterator[Finding]:
        if len(self._means) > _EPOCHS:
            first, last = self._means[0], min(self._means[1:])
            if last > first - _FALLEN * abs(first):
                yield Finding(
                    "signal",
                    f"after {_EPOCHS} epochs the loss is still where it began: the net has not started to train.",
                )


def _rows(step: int, names: Sequence[str], values: Tensor) -> Iterator[dict[str, Any]]:
    for name, numbers in zip(names, values.tolist(), strict=True):
        yield {"step": step, "layer": name, **dict(zip(COLUMNS, numbers, strict=True))}


def _of_signal(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """What the looks of an epoch show."""
    # What reaches the first layer is the data itself.
    names = list(dict.fromkeys(row["layer"] for row in rows))
    for name in names[1:]:
        shares = [row["dead"] for row in rows if row["layer"] == name]
        if min(shares) > _DEAD:
            yield Finding("signal", f"over {_DEAD:.0%} of the units before {name} are dead or saturated.")
    for step in dict.fromkeys(row["step"] for row in rows):
        ratio = _ratio([row for row in rows if row["step"] == step])
        if ratio < _VANISHED or ratio > _EXPLODED:
            what = "vanishes" if ratio < _VANISHED else "explodes"
            yield Finding("signal", f"the gradient {what} between {names[-1]} and {names[0]}.")
            return


def _ratio(rows: Sequence[dict[str, Any]]) -> float:
    """The gradient of the first layer over that of the last."""
    first, last = rows[0]["gradient"], rows[-1]["gradient"]
    return float(first / last) if last else 1.0


def draw_watch(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw gradient and signal of each layer against the step, as heat maps."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["layer"] for row in rows))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    figure = Figure(figsize=(11, 1.5 + 0.22 * max(len(names), 6)), layout="constrained")
    for axes, column in zip(figure.subplots(1, 3), ("gradient", "between_inputs", "dead"), strict=True):
        found = {(row["layer"], row["step"]): row[column] for row in rows}
        values = [[found.get((name, step), float("nan")) for step in steps] for name in names]
        positive = [value for line in values for value in line if value > 0]
        norm = LogNorm(min(positive), max(positive)) if column != "dead" and len(set(positive)) > 1 else None
        shown = axes.imshow(values, aspect="auto", norm=norm, interpolation="nearest")
        axes.set(title=column.replace("_", " "), xlabel="step", yticks=range(len(names)))
        axes.set_yticklabels(names, fontsize="x-small")
        places = range(0, len(steps), max(1, len(steps) // 5))
        axes.set_xticks(list(places), [str(steps[place]) for place in places])
        figure.colorbar(shown, ax=axes)
    figure.savefig(path, dpi=100)
