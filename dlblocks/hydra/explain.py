"""From an error of Hydra's to one message with the nearest legal name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlblocks.errors import UserError, did_you_mean, first_line
from dlblocks.hydra import GROUPS
from dlblocks.hydra.plain import plain
from dlblocks.registry import REGISTRY


def explain(error: Exception, arguments: Sequence[str], config_path: str, config_name: str) -> str:
    """What was wrong with the command line, where, and what would be right."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: can't be read as key=value."
    if (cause := _system_error(error)) is not None:
        return f"{cause.filename or 'the run folder'}: {cause.strerror}."
    if isinstance(error, (HydraException, OmegaConfBaseException, ValueError)):
        try:
            if found := _wrong_override(arguments, config_path, config_name):
                return found
        except (HydraException, OmegaConfBaseException):
            pass
    return first_line(error)


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind one of Hydra's, such as a folder that can't be made."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error
        error = error.__cause__
    return None


def _wrong_override(arguments: Sequence[str], config_path: str, config_name: str) -> str | None:
    texts = [text for text in arguments if "=" in text and not text.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(texts)
    if config_path.startswith("pkg://"):
        context: Any = initialize_config_module(config_path.removeprefix("pkg://"), version_base="1.3")
    else:
        context = initialize_config_dir(config_path, version_base="1.3")
    with context:
        loader = GlobalHydra.instance().config_loader()
        groups = [group for group in loader.list_groups("") if group != "hydra"]
        recipe = compose(config_name)
        chosen = []
        for override in overrides:
            name = override.key_or_group
            if "." in name or "/" in name or override.is_add():
                continue
            if name in groups:
                if wrong := _wrong_option(override, loader.get_group_options(name)):
                    return wrong
                chosen.append(f"{name}={_values(override)[0]}" if _values(override) else "")
            elif name not in recipe:
                return f"{override.input_line}: unknown key.{_hint(name, groups, recipe)}"
        recipe = compose(config_name, overrides=[text for text in chosen if text])
        for override in overrides:
            if not override.is_add() and (wrong := _wrong_key(override, recipe)):
                return wrong
    return None


def _hint(name: str, groups: Sequence[str], recipe: DictConfig) -> str:
    """Where a key of this name does exist, or the nearest names; and all names of this level."""
    groups_of_keys = ((key, value) for key, value in plain(recipe).items() if isinstance(value, dict))
    inner = [f"{key}.{name}" for key, value in groups_of_keys if name in value]
    legal = [*groups, *(str(key) for key in recipe)]
    found = f" Did you mean {' or '.join(map(repr, inner))}?" if inner else did_you_mean(name, legal)
    return f"{found} Keys: {_listed(legal)}."


def _wrong_option(override: Override, options: Sequence[str]) -> str | None:
    kind = GROUPS.get(override.key_or_group)
    for value in _values(override):
        if value in options or value == "null" or (kind and REGISTRY.has(kind, value)):
            continue
        return (
            f"{override.key_or_group}={value}: no such option.{did_you_mean(value, options)}"
            f" Options: {_listed(options)}."
        )
    return None


def _wrong_key(override: Override, recipe: DictConfig) -> str | None:
    parts = override.key_or_group.split(".")
    node: Any = recipe
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return f"{override.input_line}: {'.'.join(parts[:depth])} has no keys, it is {node!r}."
        if part not in node and parts[0] != "hydra" and "/" not in part:
            legal = [str(key) for key in node]
            place = ".".join(parts[:depth])
            return f"{override.input_line}: {place} has no {part!r}.{did_you_mean(part, legal)} Keys: {_listed(legal)}."
        node = None if OmegaConf.is_missing(node, part) else node.get(part)
    return None


def _values(override: Override) -> list[str]:
    if isinstance(override.value(), Glob):
        return []
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(set(names))) or "none"
