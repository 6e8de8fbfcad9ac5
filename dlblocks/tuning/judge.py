"""Which of the values that validation gives is the loss by which a learning rate is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightning.pytorch.callbacks import Callback

from dlblocks.errors import UserError
from dlblocks.tuning.trial import RETURNED, RETURNED_LOSS

_OF_VALIDATION = frozenset({"val", "valid", "validation", "eval", "dev"})
# Lightning adds these to the names of what is logged by step, by epoch, or with several loaders.
_ENDING = re.compile(r"(_step|_epoch)?(/dataloader_idx_0)?$")


class Judge:
    """Chooses, in this order: `monitor`; the loss in a mapping that `validation_step` returns; what a callback of the
    Trainer monitors with mode=min; a tensor that `validation_step` returns; the validation loss by its name, such as
    `val_loss`, `valid/loss` or `loss`; the only other name with the word `loss` in it.

    Args:
        monitor: the name to take.
        callbacks: of the Trainer.
    """

    def __init__(self, monitor: str | None, callbacks: Iterable[Callback]) -> None:
        self.monitor = monitor
        self._monitored = [
            name
            for callback in callbacks
            if isinstance(name := getattr(callback, "monitor", None), str)
            and getattr(callback, "mode", None) == "min"
        ]
        self.chosen: str | None = None

    def __call__(self, names: Sequence[str]) -> str | None:
        """The name that counts; None if no name tells of a loss.

        Raises:
            UserError: the `monitor` is not among them, or several could be the loss.
        """
        self.chosen = self._choose(names)
        return self.chosen

    def _choose(self, names: Sequence[str]) -> str | None:
        if self.monitor is not None:
            if (found := _logged_as(self.monitor, names)) is None:
                raise UserError(_not_logged(self.monitor, names))
            return found
        if RETURNED_LOSS in names:
            return RETURNED_LOSS
        for monitored in self._monitored:
            if (found := _logged_as(monitored, names)) is not None:
                return found
        if RETURNED in names:
            return RETURNED
        if plain := [name for name in names if _words(name)[0] == ["loss"]]:
            return max(plain, key=lambda name: _words(name)[1])
        losses = [name for name in names if "loss" in _words(name)[0]]
        if len(losses) > 1:
            raise UserError(
                f"find_lr: validation logs several losses ({', '.join(losses)}); say which one judges a learning"
                f" rate, such as monitor={losses[0]!r}, here or in a ModelCheckpoint."
            )
        return losses[0] if losses else None

    @property
    def told(self) -> str:
        """What the chosen value is called on the terminal, in picture and table."""
        assert self.chosen is not None
        if self.chosen in (RETURNED, RETURNED_LOSS) or _words(self.chosen)[0] == ["loss"]:
            return "validation loss"
        return self.chosen


def _logged_as(monitored: str, names: Sequence[str]) -> str | None:
    return next((name for name in (monitored, _ENDING.sub("", monitored)) if name in names), None)


def _not_logged(monitor: str, names: Sequence[str]) -> str:
    logged = [name for name in names if name not in (RETURNED, RETURNED_LOSS)]
    return (
        f"find_lr: monitor={monitor!r} is not what validation logs, which is"
        f" {', '.join(logged) if logged else 'nothing'}."
    )


def _words(name: str) -> tuple[list[str], bool]:
    """The words of a name, without those that say that it is of validation, and whether one did.

    >>> _words("valid/reconLoss_epoch"), _words("val_lossless"), _words("loss")
    ((['recon', 'loss'], True), (['lossless'], True), (['loss'], False))
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", _ENDING.sub("", name))]
    rest = [word for word in words if word not in _OF_VALIDATION]
    return rest, len(rest) < len(words)
