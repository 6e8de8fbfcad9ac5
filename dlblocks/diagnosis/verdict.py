"""From the signal to a verdict in words.

The bounds are set on the tuned grid of `scripts/benchmark.py diagnosis`: beyond those of `_hopeless` no net of it
has started, and within those of `_healthy` nearly all have. What lies between is left to a trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log10
from typing import Literal

from dlblocks.diagnosis.signal import Signal

Outcome = Literal["trains", "slow", "will not start", "will diverge", "unclear"]

# Of gradient descent: error taken off for each unit of learning rate, as a log10.
_SLOWEST, _FASTEST = -9.0, 10.0
# Of adaptive methods, which scale gradients up: log10 of the largest gradient that tells inputs apart.
_FAINTEST = -20.0
# Fewer dimensions than this are a line.
_LINE = 1.2
# By whether the optimizer is adaptive, log10 of: the share of what reaches the last layer that differs
# between inputs, the first gradient over the last, and how the output differs, squared.
_LIKELY = {True: (-15.0, -8.0, -28.0), False: (-4.0, -20.0, -11.0)}
# A first update of this share of the weights changes them in time and does not overturn them.
_UPDATE = (1e-5, 0.1)


@dataclass(frozen=True)
class Verdict:
    """Will it start to train?

    Args:
        outcome: `trains`, `slow`, `will not start`, `will diverge`; `unclear` if only a trial can tell.
        reason: one sentence.
        layer: the name of the layer where it breaks, if at one.
    """

    outcome: Outcome
    reason: str
    layer: str | None = None


def judge(signal: Signal, adaptive: bool) -> Verdict:
    """What the probe alone can tell.

    Args:
        signal: of one batch.
        adaptive: whether the optimizer scales each gradient by its size, as Adam does.
    """
    return (
        _hopeless(signal, adaptive)
        or _healthy(signal)
        or Verdict("unclear", describe(signal)[0], describe(signal)[1])
    )


def likeliest(signal: Signal, adaptive: bool) -> Verdict:
    """The verdict where the signal is unclear and nothing may be tried: of the tuned grid, no net beyond these bounds
    has started.

    Args:
        signal: of one batch.
        adaptive: whether the optimizer scales each gradient by its size, as Adam does.
    """
    reason, layer = describe(signal)
    alike, vanished, faint = _LIKELY[adaptive]
    last = signal.layers[-1]
    # A last layer of zeros learns at once from what reaches it, and then lets gradients through.
    broken = last.weight > 0 and (
        _log(_ratio(signal)) < vanished or _log(signal.output_mean_square * signal.output_variation) < faint
    )
    if broken or _log(last.variation) < alike:
        return Verdict("will not start", reason, layer)
    return Verdict("unclear", reason, layer)


def _hopeless(signal: Signal, adaptive: bool) -> Verdict | None:
    if not signal.finite:
        broken = next((layer for layer in signal.layers if not isfinite(layer.mean + layer.deviation)), None)
        where = broken or signal.layers[-1]
        return Verdict(
            "will diverge", f"the signal grows until it is no finite number, at {where.name}.", where.name
        )
    reason, layer = describe(signal)
    if adaptive:
        if _log(signal.useful) < _FAINTEST:
            return Verdict("will not start", reason, layer)
        return None
    if _log(signal.speed) < _SLOWEST:
        return Verdict("will not start", reason, layer)
    if _log(signal.speed) > _FASTEST:
        return Verdict("will diverge", reason, layer)
    return None


def _healthy(signal: Signal) -> Verdict | None:
    output = _log(signal.output_mean_square * signal.output_variation)
    variation = min(layer.variation for layer in signal.layers)
    updates = [layer.update for layer in signal.layers if layer.update is not None]
    if (
        signal.alignment > 0.5
        and -2.5 < output < 1.5
        and variation > 0.25
        # What comes in may be a line itself.
        and min(layer.dimensions for layer in signal.layers) > min(2.0, 0.6 * signal.layers[0].dimensions)
        and 0.1 < _ratio(signal) ** 2 < 30
        and _log(signal.speed) > -1.4
        and all(_UPDATE[0] < update < _UPDATE[1] for update in updates)
    ):
        return Verdict("trains", "signal and gradient pass through all layers.")
    return None


def describe(signal: Signal) -> tuple[str, str | None]:
    """What stands out most, in a sentence, and the layer where."""
    layers = signal.layers
    trained = [layer for layer in layers if layer.gradient is not None] or layers
    first, last = trained[0], trained[-1]
    same = next((layer for layer in layers[:-1] if layer.identical > 0.9), None)
    if same is not None and same.variation > 0:
        return (
            f"all units of {same.name} do the same and get the same gradient: nothing tells them apart.",
            same.name,
        )
    dead = next((layer for layer in layers if (layer.dead or 0) > 0.95), None)
    if dead is not None:
        return f"the units behind {dead.name} are dead: their slope is 0 for all inputs.", dead.name
    alike = next((layer for layer in layers if layer.variation < 1e-4), None)
    ratio = _ratio(signal)
    if ratio < 1e-3:
        return (
            f"the gradient that reaches {first.name} is about {ratio:.0e} of that of {last.name}: it vanishes on its"
            " way back.",
            first.name,
        )
    if alike is not None:
        return (
            f"all inputs look alike at {alike.name}: what differs between them is {alike.variation:.0e} of the"
            " signal.",
            alike.name,
        )
    if ratio > 1e3:
        return (
            f"the gradient that reaches {first.name} is about {ratio:.0e} times that of {last.name}: it explodes on its"
            " way back.",
            first.name,
        )
    if signal.output_mean_square > 1e4:
        return (
            f"the net gives numbers of about {signal.output_mean_square**0.5:.0e}: the signal explodes.",
            layers[-1].name,
        )
    size = signal.output_mean_square * signal.output_variation
    if size < 1e-6:
        return (
            f"what the net gives differs by only {size**0.5:.0e} between inputs: the signal dies out.",
            layers[-1].name,
        )
    line = next((layer for layer in layers if layer.dimensions < _LINE <= layers[0].dimensions), None)
    if line is not None:
        return (
            f"inputs differ in one direction only at {line.name}: the net tells its two ends apart, and no more.",
            line.name,
        )
    if signal.alignment < 0.2:
        return "inputs of one class have no more in common than others for this net: it scatters them.", None
    return "some layers pass the signal on only in part.", None


def _ratio(signal: Signal) -> float:
    """The gradient of the first layer that is trained over that of the last."""
    gradients = [layer.gradient for layer in signal.layers if layer.gradient is not None]
    if len(gradients) < 2:
        return 1.0
    first, last = gradients[0], gradients[-1]
    return first / last if last > 0 else inf if first > 0 else 0.0


def _log(value: float) -> float:
    return log10(value) if value > 0 else -inf
