"""A diagnosis as one report: a panel, `diagnosis.json`, and the picture `signal.png`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING

from dlblocks.diagnosis.signal import Layer, Signal
from dlblocks.diagnosis.trial import Trial
from dlblocks.diagnosis.verdict import Verdict
from dlblocks.errors import UserError
from dlblocks.results import finite, write_atomically
from dlblocks.theory.prediction import Prediction

if TYPE_CHECKING:
    from rich.panel import Panel

_COLOURS = {"trains": "green", "slow": "yellow", "unclear": "yellow"}
# Rows of the table in the panel; of deeper nets the first and last layers are shown.
_ROWS = 10


@dataclass(frozen=True)
class Finding:
    """Something wrong beside the signal.

    Args:
        where: the config key or the part of the model.
        message: what is wrong, and what would be right.
    """

    where: str
    message: str


@dataclass(frozen=True)
class Diagnosis:
    """Whether a net will start to train, why, and what would help.

    Args:
        verdict: the answer.
        signal: what one batch showed.
        trials: short runs, where the signal alone did not tell.
        suggestions: changes with which it would start, each tried out, such as `init=auto`.
        findings: what else is wrong: a double softmax, shapes that broadcast, labels of another format.
        theory: what mean-field theory expects of the net; None where inputs are several tensors.
    """

    verdict: Verdict
    signal: Signal
    trials: tuple[Trial, ...] = ()
    suggestions: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    theory: Prediction | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against training."""
        return self.verdict.outcome in ("trains", "slow", "unclear") and not self.findings

    @property
    def worth_telling(self) -> bool:
        """Whether a user would want to know it before training."""
        unclear = self.verdict.outcome == "unclear" and self.verdict.layer is not None
        return unclear or self.verdict.outcome not in ("trains", "unclear") or bool(self.findings)

    def check(self, where: str = "diagnose=strict") -> None:
        """Refuse what will not train.

        Raises:
            UserError: the verdict, its reason, and what would help.
        """
        if not self.sound:
            raise UserError(f"{where}: {' '.join(self.lines())}")

    def lines(self) -> list[str]:
        """The verdict, its reason, findings and suggestions, a sentence each."""
        told = [f"{finding.where}: {finding.message}" for finding in self.findings]
        if self.verdict.outcome != "trains" or not told:
            said = {"trains": "This network will start to train", "slow": "This network starts slowly"}
            start = said.get(self.verdict.outcome, f"This network {self.verdict.outcome}")
            if self.verdict.outcome == "unclear":
                start = "Whether this network starts to train is unclear"
            told.insert(0, f"{start}: {self.verdict.reason}")
        if self.suggestions:
            told.append(f"Tried, and starts to train: {', '.join(self.suggestions)}.")
        return told

    def panel(self) -> Panel:
        """For the terminal."""
        from rich.console import Group
        from rich.markup import escape
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table("layer", "deviation", "between inputs", "dead", "gradient", "update / weight", box=None)
        for layer in _shown(self.signal.layers):
            if layer is None:
                table.add_row("...")
                continue
            table.add_row(
                escape(f"{layer.name} ({layer.kind})"),
                f"{layer.deviation:.1e}",
                f"{layer.variation:.1%}" if layer.variation >= 1e-3 else f"{layer.variation:.0e}",
                "" if layer.dead is None else f"{layer.dead:.0%}",
                "" if layer.gradient is None else f"{layer.gradient:.1e}",
                "" if layer.update is None else f"{layer.update:.0e}",
            )
        colour = _COLOURS.get(self.verdict.outcome, "red") if not self.findings else "red"
        title = f"diagnosis: {self.verdict.outcome}"
        expected = _expected(self.theory)
        body = [*map(escape, self.lines()), "", table, *(("", Text(expected, "dim")) if expected else ())]
        return Panel(Group(*body), title=title, border_style=colour)

    def save(self, folder: str | Path) -> None:
        """Write `diagnosis.json` and `signal.png` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(asdict(self)), indent=2, allow_nan=False) + "\n"
        write_atomically(folder / "diagnosis.json", text)
        draw(self.signal.layers, folder / "signal.png", self.theory)


def _expected(theory: Prediction | None) -> str:
    """What theory says of the net, in a sentence."""
    if theory is None:
        return ""
    if not theory.modelled:
        return f"Mean-field theory does not model this net: {theory.reason}"
    if theory.chi is None or theory.fixed_variance is None or theory.depth_scale is None:
        return ""
    scale = "" if isinf(theory.depth_scale) else f", e-fold over {theory.depth_scale:.2g} layers"
    moves = "shrinks" if theory.chi < 1 else "grows"
    moves = "keeps" if isinf(theory.depth_scale) else moves
    return (
        f"Mean-field theory: with depth the variance goes to q* = {theory.fixed_variance:.2g}, where each hidden layer"
        f" {moves} gradients by chi = {theory.chi:.3g} in mean square{scale}."
    )


def draw(layers: Sequence[Layer], path: Path, theory: Prediction | None = None) -> None:
    """Draw the signal on its way forward and the gradient on its way back, per layer; and what theory expects of the
    pre-activations, where it models the net."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    # Placed by hand, with few ticks and plain numbers at them, which takes a third of the time.
    figure = Figure(figsize=(9, 3.2))
    forward, backward = figure.subplots(
        1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.16, "top": 0.9, "wspace": 0.18}
    )
    at = range(1, len(layers) + 1)
    forward.plot(at, [_positive(layer.deviation) for layer in layers], ".-", label="deviation")
    between = [_positive((layer.variation * (layer.deviation**2 + layer.mean**2)) ** 0.5) for layer in layers]
    forward.plot(at, between, ".--", label="between inputs")
    forward.plot(at, [_positive(layer.output) for layer in layers], ".-", label="pre-activations", alpha=0.5)
    expected = {layer.name: layer.variance for layer in theory.layers} if theory is not None else {}
    roots = [(expected.get(layer.name) or 0.0) ** 0.5 for layer in layers]
    if any(roots):
        forward.plot(at, [_positive(root) for root in roots], "k:", label="as theory expects")
    backward.plot(at, [_positive(layer.gradient) for layer in layers], ".-", label="gradient")
    backward.plot(at, [_positive(layer.useful) for layer in layers], ".--", label="that tells inputs apart")
    for axes, name in ((forward, "signal"), (backward, "gradient of the weights")):
        axes.set(xlabel="layer", title=name, yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="best" if len(layers) < 3 else "lower left")
    figure.savefig(path, dpi=80)


def _positive(value: float | None) -> float:
    """A logarithmic axis has no 0; a gap stands for it, and for what is not there."""
    return value if value is not None and value > 0 else float("nan")


def _shown(layers: Sequence[Layer]) -> list[Layer | None]:
    if len(layers) <= _ROWS:
        return list(layers)
    half = _ROWS // 2
    return [*layers[:half], None, *layers[-half:]]
