"""What blocks exist, what their parameters are, and how one is built.

A block is described once, as a frozen record of plain data, so that listing, help and config
composition need no torch: the target is imported when a block is built, not before. The built-in
records stand in the catalogue of their kind (`dlblocks/activations/__init__.py`, ...). Others add
theirs with the decorator `register`, or through the entry-point group `dlblocks.blocks`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from dlblocks.errors import DuplicateBlockError, UserError, unknown
from dlblocks.records import Block, Param, ParamType, shown

ENTRY_POINT_GROUP = "dlblocks.blocks"

# Where the built-in records of each kind stand: a module with a tuple `BLOCKS`.
CATALOGUES: Mapping[str, str] = MappingProxyType(
    {
        "activation": "dlblocks.activations",
        "initializer": "dlblocks.initializers",
        "loss": "dlblocks.losses",
        "optimizer": "dlblocks.optimizers",
        "scheduler": "dlblocks.schedulers",
        "model": "dlblocks.models",
        "dataset": "dlblocks.data",
    }
)

# A block wherever one is accepted: a name, a `{name: ..., params}` mapping, or a ready object.
Spec: TypeAlias = Any
T = TypeVar("T")


class Registry:
    """All blocks, by kind and name. Catalogues and entry points are read on first need."""

    def __init__(self, catalogues: Mapping[str, str] = CATALOGUES) -> None:
        self._catalogues = catalogues
        self._blocks: dict[str, dict[str, Block]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._entry_points_read = False

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._catalogues)

    def add(self, block: Block) -> None:
        """Add a record.

        Raises:
            DuplicateBlockError: its name or an alias is taken by another owner.
        """
        self._load(block.kind)
        self._add(block)

    def get(self, kind: str, name: str, where: str = "") -> Block:
        """The record of a name or alias.

        Raises:
            UnknownNameError: no such kind or name.
        """
        found = self._find(kind, name)
        if found is None and not self._entry_points_read:
            self._read_entry_points()
            found = self._find(kind, name)
        if found is None:
            raise unknown(kind, name, self.names(kind), where)
        return found

    def has(self, kind: str, name: str) -> bool:
        """Whether a name or alias exists."""
        if self._find(kind, name) is None:
            self._read_entry_points()
        return self._find(kind, name) is not None

    def names(self, kind: str, pattern: str = "*") -> list[str]:
        """The sorted names of a kind that match a shell pattern, such as `"*elu*"`."""
        self._load(kind)
        self._read_entry_points()
        return sorted(name for name in self._blocks[kind] if fnmatchcase(name, pattern))

    def _find(self, kind: str, name: str) -> Block | None:
        self._load(kind)
        return self._blocks[kind].get(self._aliases[kind].get(name, name))

    def _load(self, kind: str) -> None:
        if kind in self._blocks:
            return
        if kind not in self._catalogues:
            raise unknown("kind of block", kind, self._catalogues)
        blocks = importlib.import_module(self._catalogues[kind]).BLOCKS
        self._blocks[kind], self._aliases[kind] = {}, {}
        for block in blocks:
            self._add(block)

    def _add(self, block: Block) -> None:
        blocks, aliases = self._blocks[block.kind], self._aliases[block.kind]
        for name in (block.name, *block.aliases):
            holder = blocks.get(aliases.get(name, name))
            # The same definition run again, as in a notebook cell, replaces itself.
            if holder is not None and (holder.owner, holder.name) != (block.owner, block.name):
                raise DuplicateBlockError(
                    f"{block.kind} {name!r} is claimed twice: by {holder.owner} and by {block.owner}."
                    " Rename one of them."
                )
        if block.name in blocks:
            for alias in blocks[block.name].aliases:
                aliases.pop(alias, None)
        blocks[block.name] = block
        aliases.update(dict.fromkeys(block.aliases, block.name))

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        from importlib.metadata import entry_points

        for entry_point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                loaded = entry_point.load()
                for block in loaded if isinstance(loaded, Iterable) else ():
                    # An owner left at its default must not pass for dlblocks and replace its blocks.
                    anonymous = block.owner == Block.owner
                    self.add(replace(block, owner=entry_point.value) if anonymous else block)
            except Exception as error:  # a broken plugin must not take the others with it
                warnings.warn(
                    f"the blocks of entry point {entry_point.name!r} ({entry_point.value}) are left"
                    f" out: {type(error).__name__}: {error}",
                    stacklevel=2,
                )


REGISTRY = Registry()


def names(kind: str, pattern: str = "*") -> list[str]:
    """The names of all blocks of a kind that match a shell pattern.

    >>> names("activation", "?elu")
    ['celu', 'gelu', 'relu', 'selu']
    """
    return REGISTRY.names(kind, pattern)


def describe(kind: str, name: str) -> str:
    """A page of text about one block: formula, shapes, parameters, source."""
    return REGISTRY.get(kind, name).describe()


def parse(kind: str, spec: str | Mapping[str, Any], where: str = "") -> tuple[Block, dict[str, Any]]:
    """The record and the checked parameters of a name or a `{name: ..., params}` mapping.

    Raises:
        UserError: unknown name or parameter, or a value that is not legal.
    """
    where = where or kind
    if isinstance(spec, str):
        return REGISTRY.get(kind, spec, where), {}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise UserError(
            f"{where}={shown(spec)}: must be a name or a mapping {{name: ..., parameters}}."
            f" Names: {', '.join(names(kind))}."
        )
    block = REGISTRY.get(kind, spec["name"], where)
    return block, block.check({k: v for k, v in spec.items() if k != "name"}, where)


def parse_whole(
    kind: str, spec: str | Mapping[str, Any], params: Mapping[str, Any], where: str = ""
) -> tuple[Block, dict[str, Any]]:
    """As `parse`, with `params` over those of `spec` and both over the defaults: every parameter is there.

    Raises:
        UserError: as `parse`, or a lower bound (the first name of the tag `ascending`) above the upper one.
    """
    block, given = parse(kind, spec, where)
    given.update(block.check(params, where))
    whole = {p.name: given.get(p.name, p.default) for p in block.params}
    if bounds := block.tags.get("ascending"):
        low, high = bounds
        if whole[low] > whole[high]:
            raise UserError(
                f"{where or kind}: {low}={whole[low]:g} must not be above {high}={whole[high]:g}."
            )
    return block, whole


def spell_out(kind: str, spec: str | Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The whole description of a block as plain values: `{name: ..., every parameter}`."""
    block, params = parse(kind, spec, where)
    params = {key: list(value) if isinstance(value, tuple) else value for key, value in params.items()}
    return {"name": block.name, **block.defaults(), **params}


def name_of(spec: Spec) -> str:
    """The name in a spec, for messages; of a ready object, that of its function or class."""
    if isinstance(spec, Mapping):
        return str(spec.get("name"))
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)


def build(kind: str, spec: str | Mapping[str, Any], /, *args: Any, where: str = "", **params: Any) -> Any:
    """Build a block: its target called with `args` and its parameters, those given over the defaults.

    Raises:
        UserError: unknown name or parameter, or a value that is not legal.
        MissingPackageError: the package that holds the target is not installed.
    """
    block, full = parse_whole(kind, spec, params, where)
    return block.load()(*args, **full)


def register(
    kind: str, name: str | None = None, /, **about: Any
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorator that adds a class or function to the registry.

    Its parameters are read from its signature; each needs a default. Without `name`, a class
    `SquaredReLU` becomes `squared_relu`. `about` takes the other fields of `Block` (`formula`,
    `summary`, `aliases`, ...); what is not a field becomes a tag (`elementwise=True`,
    `width_ratio=2`). The class or function itself is returned unchanged.

    >>> @register("activation", formula="max(x, 0)^2", elementwise=True)  # doctest: +SKIP
    ... class SquaredReLU(torch.nn.Module): ...
    """

    def add(target: Callable[..., T]) -> Callable[..., T]:
        fields = {key: about[key] for key in about if key in Block.__dataclass_fields__}
        tags = {key: value for key, value in about.items() if key not in fields}
        fields.setdefault("summary", (inspect.getdoc(target) or "").partition("\n")[0])
        fields.setdefault("params", _params_of(target, positional=_POSITIONAL.get(kind, 0)))
        REGISTRY.add(
            Block(
                kind=kind,
                name=name or _snake(target.__name__),
                target=target,
                owner=f"{target.__module__}:{target.__qualname__}",
                **{**fields, "tags": {**fields.get("tags", {}), **tags}},
            )
        )
        return target

    return add


# How many leading arguments a target takes that are not parameters of the block.
_POSITIONAL: Mapping[str, int] = {"initializer": 1, "optimizer": 1, "scheduler": 1, "model": 3}


# Arguments that the building function gives, so that they are no parameters of the block either.
_GIVEN = ("fans", "generator", "total_steps", "mode")


def _params_of(target: Callable[..., Any], positional: int) -> tuple[Param, ...]:
    params = []
    for parameter in list(inspect.signature(target).parameters.values())[positional:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in _GIVEN:
            continue
        if parameter.default is parameter.empty:
            raise UserError(
                f"{target.__module__}:{target.__qualname__}: parameter {parameter.name!r} has no default,"
                " so the block cannot be built by its name. Give it one."
            )
        params.append(
            Param(parameter.name, parameter.default, _type_of(parameter.default), "", optional=True)
        )
    return tuple(params)


def _type_of(default: Any) -> ParamType:
    for type_, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
        if isinstance(default, type_):
            return name  # type: ignore[return-value]
    return "any"


def _snake(name: str) -> str:
    """`SquaredReLU` -> `squared_relu`, `HardSiLU` -> `hard_silu`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()
