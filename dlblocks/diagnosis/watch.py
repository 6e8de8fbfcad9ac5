"""Watch the signal of every layer while a net trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isnan, nan, prod
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.signal import matrices, weighs
from dlblocks.diagnosis.trial import constant_loss
from dlblocks.module import LitModule
from dlblocks.results import write_table
from dlblocks.terminal import show

COLUMNS = ("deviation", "between_inputs", "dead", "gradient")
# With fewer rows than this, units that are the same in all of them are not told from dead ones.
_ROWS = 16
# Bounds of what is reported.
_DEAD, _VANISHED, _EXPLODED = 0.9, 1e-6, 1e6
# A loss that has fallen by less than this after so many epochs is where it began; and one so far from chance is at it.
_FALLEN, _EPOCHS = 0.02, 3
_AT_CHANCE = (-0.02, 0.1)
# So many targets tell what chance is, for so many outputs of a net at most.
_TARGETS, _OUTPUTS = 2**14, 256


class SignalWatch(Callback):
    """Looks at each layer every few steps, and reports what goes wrong while a net trains.

    Of each layer with weights: the deviation of what reaches it, that between the inputs of a batch, the share of
    features that reach it unchanged for all inputs and at all places (dead or saturated units of the layer before),
    and the norm of its weights' gradient. They are computed on the device and fetched once an epoch, so no step waits
    for them. Nan stands for what a look does not tell: features unchanged in fewer than 16 rows (instances times
    places), what differs between the inputs of a batch of one, and the gradient of a layer whose weights are frozen.
    A call with a single vector, which has no instances, is left out.

    Reported, each once, with the layer: dead units (over 90 %), gradients that vanish or explode (the first layer's
    below 1e-6 or above 1e6 times the last one's), a loss that has been at chance for 3 epochs, where a constant output
    would get it (known of a `LitModule` with up to 256 outputs), or that has not fallen after 3. The logger gets
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
        self._targets: list[Tensor] = []
        self._output: torch.Size | None = None
        self._chance: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "means": self._means,
            "looks": self._looks,
            "losses": self._losses,
            "targets": self._targets,
            "chance": self._chance,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._means = list(state_dict["rows"]), list(state_dict["means"])
        self._looks, self._losses = list(state_dict["looks"]), list(state_dict["losses"])
        self._targets, self._chance = list(state_dict.get("targets", [])), state_dict.get("chance")
        self.findings = [Finding(**finding) for finding in state_dict["findings"]]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._layers = {name: module for name, module in pl_module.named_modules() if weighs(module)}

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if trainer.global_step % self.every_n_steps or self._hooks:
            return
        self._forward = {}
        self._hooks = [
            module.register_forward_pre_hook(self._noter(name)) for name, module in self._layers.items()
        ]
        if isinstance(pl_module, LitModule):
            self._hooks.append(pl_module.net.register_forward_hook(self._note_output))

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
            seen.append(torch.cat([forward, _gradient(self._layers[name], forward)[None]]))
        if seen:
            self._looks.append((trainer.global_step, list(self._forward), torch.stack(seen)))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            # Lightning gives the share of an update that is made of several batches.
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if self._chance is None and isinstance(pl_module, LitModule):
            share = int(_TARGETS // max(1, trainer.num_training_batches))
            self._targets.append(batch[1][: max(1, share)])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._losses:
            self._means.append(float(torch.stack(self._losses).mean()))
            self._losses = []
        if self._targets and self._output is not None and isinstance(pl_module, LitModule):
            self._chance = _chance(pl_module, torch.cat(self._targets), self._output)
        self._targets = []
        new = [row for look in self._looks for row in _rows(*look)]
        self._looks = []
        self.rows += new
        found = [finding for finding in (*_of_signal(new), *self._of_loss()) if finding not in self.findings]
        self.findings += found
        if found and trainer.is_global_zero:
            lines = Group(*(escape(finding.message) for finding in found))
            title = f"signal: epoch {trainer.current_epoch}"
            show(Panel(lines, title=title, border_style="red"))
        if new:
            # What one process can't tell another may; all have to log the same names.
            names, values = zip(*_logged(new).items(), strict=True)
            gathered = pl_module.all_gather(torch.tensor(values, device=pl_module.device))
            assert isinstance(gathered, Tensor)
            means = gathered.reshape(-1, len(names)).nanmean(0).tolist()
            logged = {name: mean for name, mean in zip(names, means, strict=True) if not isnan(mean)}
            pl_module.log_dict(logged, sync_dist=True)

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
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name in self._forward or not (inputs and isinstance(inputs[0], Tensor)):
                return
            if _has_instances(inputs[0], module):
                self._forward[name] = _seen(inputs[0].detach(), module)

        return note

    def _note_output(self, _: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG002
        self._output = output.shape[1:]

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _of_loss(self) -> Iterator[Finding]:
        if len(self._means) > _EPOCHS:
            first, least = self._means[0], min(self._means[1:])
            chance = self._chance if self._chance is not None else nan
            low, high = (chance + part * abs(chance) for part in _AT_CHANCE)
            if all(low < mean < high for mean in self._means[-_EPOCHS:]):
                yield Finding(
                    "signal",
                    f"for {_EPOCHS} epochs the loss has been at chance, {chance:.3g}, which a constant output reaches: the"
                    " net tells no inputs apart.",
                )
            elif least > first - _FALLEN * abs(first):
                yield Finding(
                    "signal",
                    f"after {_EPOCHS} epochs the loss is still where it began: the net has not started to train.",
                )


def _chance(module: LitModule, y: Tensor, output: torch.Size) -> float:
    """The loss of the best constant output; nan for many outputs, or a sum, which depends on the batch."""
    if output.numel() > _OUTPUTS or getattr(module.loss, "reduction", "mean") == "sum":
        return nan
    return constant_loss(torch.zeros(1, *output, device=y.device), y, module.criterion)


def _has_instances(given: Tensor, module: nn.Module) -> bool:
    """Whether what reaches a layer is a batch of signals: not a single vector, such as a learned one, nor indices."""
    whole = given.layout is torch.strided and given.is_floating_point() and given.numel() > 0
    return whole and given.ndim >= 2 + _places(module)


def _places(module: nn.Module) -> int:
    """How many dimensions of a layer's input come after its units: `(N, C, H, W)` of a convolution."""
    return len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0


def _seen(given: Tensor, module: nn.Module) -> Tensor:
    """Deviation, that between the instances, and the share of units that are the same in all rows.

    Rows are instances and places, `(N, T, units)` or `(N, units, H, W)`; copies of one by `expand` are one row. Nan
    where there are too few to tell.
    """
    if given.ndim == 3 and getattr(module, "batch_first", True) is False:
        given = given.transpose(0, 1)
    units = given.movedim(-1 - _places(module), -1)
    sizes = [size if stride else 1 for size, stride in zip(units.shape, units.stride(), strict=True)]
    flat = given.flatten(1).float()
    nothing = flat.new_full((), nan)
    between = flat.var(0, correction=0).mean().sqrt() if sizes[0] > 1 else nothing
    same = nothing
    if prod(sizes[:-1]) >= _ROWS:
        first = units[(0,) * (units.ndim - 1)]
        same = (units == first).flatten(0, -2).all(0).float().mean()
    return torch.stack([flat.std(correction=0), between, same])


def _gradient(module: nn.Module, like: Tensor) -> Tensor:
    """The norm of the gradient of a layer's own weights; nan if none of them is trained."""
    weights = [weight for weight in matrices(module) if weight.requires_grad]
    if not weights:
        return like.new_full((), nan)
    norms = [p.grad.norm().to(like) for p in weights if p.grad is not None]
    return torch.stack(norms).norm() if norms else like.new_zeros(())


def _rows(step: int, names: Sequence[str], values: Tensor) -> Iterator[dict[str, Any]]:
    for name, numbers in zip(names, values.tolist(), strict=True):
        yield {"step": step, "layer": name, **dict(zip(COLUMNS, numbers, strict=True))}


def _of_signal(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """What the looks of an epoch show."""
    # What reaches the first layer is the data itself.
    names = list(dict.fromkeys(row["layer"] for row in rows))
    for name in names[1:]:
        shares = [row["dead"] for row in rows if row["layer"] == name and not isnan(row["dead"])]
        if shares and min(shares) > _DEAD:
            yield Finding("signal", f"over {_DEAD:.0%} of the units before {name} are dead or saturated.")
    for step in dict.fromkeys(row["step"] for row in rows):
        trained = _trained([row for row in rows if row["step"] == step])
        ratio = _ratio(trained)
        if ratio < _VANISHED or ratio > _EXPLODED:
            what = "vanishes" if ratio < _VANISHED else "explodes"
            last, first = trained[-1]["layer"], trained[0]["layer"]
            yield Finding("signal", f"the gradient {what} between {last} and {first}.")
            return


def _trained(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of layers that have a gradient."""
    return [row for row in rows if not isnan(row["gradient"])]


def _ratio(trained: Sequence[dict[str, Any]]) -> float:
    """The gradient of the first layer over that of the last; nan if none is trained."""
    if not trained:
        return nan
    first, last = trained[0]["gradient"], trained[-1]["gradient"]
    return float(first / last) if last else 1.0


def _logged(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the logger gets of an epoch's looks; nan for what none of them tells."""
    known = {name: [row[name] for row in rows if not isnan(row[name])] for name in ("dead", "between_inputs")}
    return {
        "signal/dead": max(known["dead"], default=nan),
        "signal/between_inputs": min(known["between_inputs"], default=nan),
        "signal/gradient_ratio": _ratio(_trained([row for row in rows if row["step"] == rows[-1]["step"]])),
    }


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
