"""Callbacks and loggers that modules may ask for what they know, and that take no part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from types import new_class
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger, Logger

# Lightning leaves a hook out that can't be called.
_HOOKS: dict[str, Any] = {
    name: None
    for name, value in vars(Callback).items()
    if callable(value) and not name.startswith("_") and not name.endswith("state_dict")
}


def bystanders(callbacks: Iterable[Callback]) -> list[Callback]:
    """Stand-ins for callbacks, of their classes and with their attributes, that have no hooks."""
    return [_bystander(callback) for callback in callbacks]


def _bystander(callback: Callback) -> Callback:
    # With its __init__ and its ways to be copied left aside.
    made: Callback = object.__new__(_without_hooks(type(callback)))  # type: ignore[arg-type]
    vars(made).update(vars(callback))
    return made


@cache
def _without_hooks(kind: type[Callback]) -> type[Callback]:
    hooks = _HOOKS | {"__module__": __name__}  # as it keeps nothing of a batch
    if getattr(kind, "setup", None) is ModelCheckpoint.setup:
        del hooks["setup"]  # which says where checkpoints would go, and writes nothing
    if hasattr(kind, "__del__"):
        hooks["__del__"] = _leave
    return new_class(kind.__name__, (kind,), exec_body=lambda body: body.update(hooks))


def _leave(_: Any) -> None:
    """What the callback holds is not the stand-in's to end."""


def silent(loggers: Sequence[Logger]) -> list[Logger]:
    """Loggers that know names and folders of others, and drop everything."""
    return [one if type(one) is _Silent else _Silent(one) for one in loggers]


class _Silent(DummyLogger):
    """To `isinstance` one of the logger's own class, by which Lightning tells where its folder is."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._of = logger

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._of)

    @property
    def name(self) -> Any:
        return self._of.name

    @property
    def version(self) -> Any:
        return self._of.version

    @property
    def save_dir(self) -> Any:
        return self._of.save_dir

    @property
    def root_dir(self) -> Any:
        return self._of.root_dir

    @property
    def log_dir(self) -> Any:
        return self._of.log_dir
