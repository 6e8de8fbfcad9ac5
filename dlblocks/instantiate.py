"""The one place where a `_target_` of a config is called."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from dlblocks.errors import MissingPackageError, UserError

T = TypeVar("T")

_PLAIN = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}

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
    if not isinstance(config, Mapping):
        raise UserError(f"{where}={config}: must be a mapping with a _target_.")
    target = config.get("_target_")
    cls = _class(target, where)
    if not (isinstance(cls, type) and issubclass(cls, expected)):
        raise UserError(f"{where}._target_={target}: refused, since it is not a {expected.__name__}.")
    for text in _texts(config):
        if "${" in text:  # Hydra would fill it in after the targets were looked at
            raise UserError(
                f"{where}: {text!r} is refused; a recipe has no interpolation left when it is run."
            )
    for nested in _targets({key: value for key, value in config.items() if key != "_target_"}):
        if not _harmless(nested, where):
            raise UserError(
                f"{where}: the nested _target_={nested} is refused; arguments may be built from classes of"
                f" {', '.join(prefix + '*' for prefix in _NESTED)} only."
            )
    _check_types(cls, config, where)
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


def _check_types(cls: type, config: Mapping[str, Any], where: str) -> None:
    """Refuse values of another type than the plain ones that the signature names; a class that doesn't
    check them itself would fail in the middle of the training."""
    for name, parameter in inspect.signature(cls).parameters.items():
        value = config.get(name)
        words = set(re.findall(r"\w+", str(parameter.annotation))) - {
            "class",
            "Optional",
            "Union",
            "typing",
            "None",
        }
        if value is None or not words or not words <= set(_PLAIN):
            continue
        legal = tuple(kind for word in words for kind in _PLAIN[word])
        if not isinstance(value, legal) or (isinstance(value, bool) and "bool" not in words):
            raise UserError(f"{where}.{name}={value}: must be {' or '.join(sorted(words))}.")


def _class(target: Any, where: str) -> Any:
    if not isinstance(target, str) or "." not in target:
        raise UserError(f"{where}._target_={target}: must be the import path of a class, package.Class.")
    module, _, name = target.rpartition(".")
    if not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"{where}._target_={target}: must be the import path of a class, package.Class.")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{where}._target_={target}: {error}.") from error
    except AttributeError as error:
        raise UserError(f"{where}._target_={target}: {module} has no {name}.") from error
    except Exception as error:  # of the module's own code
        raise UserError(f"{where}._target_={target}: {module} can't be imported ({error}).") from error


def _harmless(target: Any, where: str) -> bool:
    """Whether a target is a class of the packages that arguments may come from. Its path alone doesn't say so: each of
    their modules that imports `os` has an `os.system` too."""
    if not str(target).startswith(_NESTED):
        return False
    cls = _class(target, where)
    return isinstance(cls, type) and cls.__module__.startswith(_NESTED)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _targets(item)
