"""The one place where a `_target_` of a config is called."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from dlblocks.errors import MissingPackageError, UserError

T = TypeVar("T")

# Arguments of a target may be built from targets of these packages only.
_NESTED = ("lightning.", "torchmetrics.", "dlblocks.")


def instantiate(config: Mapping[str, Any], expected: type[T], where: str) -> T:
    """Call the class that `_target_` names, with the other keys as arguments.

    Args:
        config: `{_target_: package.Class, argument: value, ...}`.
        expected: the target must be a class of this kind, so that a config from a stranger can't
            name `os.system`.
        where: the config key, for errors.

    Raises:
        UserError: no target, a target of another kind, or arguments that it refuses.
        MissingPackageError: the target needs a package that is not installed.
    """
    target = config.get("_target_")
    cls = _class(target, where)
    if not (isinstance(cls, type) and issubclass(cls, expected)):
        raise UserError(f"{where}._target_={target}: refused, since it is not a {expected.__name__}.")
    for nested in _targets({key: value for key, value in config.items() if key != "_target_"}):
        if not str(nested).startswith(_NESTED):
            raise UserError(
                f"{where}: the nested _target_={nested} is refused; arguments may be built from"
                f" {', '.join(prefix + '*' for prefix in _NESTED)} only."
            )
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    try:
        built: T = hydra_instantiate(dict(config), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            raise MissingPackageError(f"{where}: needs a package that is not installed: {cause}") from error
        raise UserError(f"{where}: {target} refuses its arguments: {cause or error}") from error
    return built


def _class(target: Any, where: str) -> Any:
    if not isinstance(target, str) or "." not in target:
        raise UserError(f"{where}._target_={target}: must be the import path of a class, package.Class.")
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{where}._target_={target}: {error}.") from error
    except AttributeError as error:
        raise UserError(f"{where}._target_={target}: {module} has no {name}.") from error


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _targets(item)
