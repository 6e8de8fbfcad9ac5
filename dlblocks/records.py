"""The one description of a block and of its parameters, as frozen plain data."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from dlblocks.errors import MissingPackageError, UserError, did_you_mean

ParamType = Literal["float", "int", "bool", "str", "floats", "ints", "any"]

_EXPECTED = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a word",
    "floats": "a list of numbers",
    "ints": "a list of whole numbers",
}


class _Same:
    """The origin's default is ours."""

    def __repr__(self) -> str:
        return "same"

    def __reduce__(self) -> str:
        return "SAME"


SAME = _Same()


@dataclass(frozen=True)
class Param:
    """One parameter of a block.

    Args:
        name: the keyword, in the field's standard terms.
        default: the value taken when none is given.
        type: what is accepted; `floats` and `ints` are lists.
        doc: what it does and its unit, in a few words.
        range: the legal interval in the usual notation, `"(0, inf)"` or `"[0, 1)"`; for lists, of
            each element.
        choices: the legal values, where they are few.
        optional: whether None is legal.
        size: for lists, the number of elements; None for any.
        origin: the default in the library the block comes from, where dlblocks has another.
    """

    name: str
    default: Any
    type: ParamType
    doc: str
    range: str = ""
    choices: tuple[Any, ...] = ()
    optional: bool = False
    size: int | None = None
    origin: Any = SAME

    def check(self, value: Any, where: str) -> Any:
        """The value in its proper type (`tuple` for lists), or a `UserError` that says what is legal."""
        if value is None and (self.optional or self.default is None):
            return None
        if self.type in ("floats", "ints"):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise self._error(value, where)
            if self.size is not None and len(value) != self.size:
                raise self._error(value, where)
            return tuple(self._check_one(item, value, where) for item in value)
        return self._check_one(value, value, where)

    def _check_one(self, item: Any, whole: Any, where: str) -> Any:
        number = isinstance(item, (int, float)) and not isinstance(item, bool)
        match self.type:
            case "float" | "floats":
                ok = number and not math.isnan(item)
                item = float(item) if ok else item
            case "int" | "ints":
                ok = number and float(item).is_integer()
                item = int(item) if ok else item
            case "bool":
                ok = isinstance(item, bool)
            case "str":
                ok = isinstance(item, str)
            case _:
                ok = True
        if ok and self.choices:
            ok = item in self.choices
        if ok and self.range and isinstance(item, (int, float)):
            ok = _inside(item, self.range)
        if not ok:
            raise self._error(whole, where)
        return item

    def _error(self, value: Any, where: str) -> UserError:
        if self.choices:
            legal = "one of " + ", ".join(str(choice) for choice in self.choices)
            hint = did_you_mean(value, map(str, self.choices)) if isinstance(value, str) else ""
        else:
            legal = _EXPECTED.get(self.type, "a value")
            if self.size is not None:
                legal = legal.replace("a list of", f"a list of {self.size}")
            if self.range:
                legal += f" in {self.range}"
            hint = ""
        if self.optional or self.default is None:
            legal += ", or null"
        return UserError(f"{where}={shown(value)}: must be {legal} (default {shown(self.default)}).{hint}")


@dataclass(frozen=True, kw_only=True)
class Block:
    """The one description of a block.

    Args:
        kind: `activation`, `initializer`, `loss`, `optimizer`, `scheduler`, `model`, `dataset`.
        name: the name in Python and on the command line.
        target: what builds it: an import path `package.module:Name`, or the object itself.
        params: its parameters, in order.
        aliases: other names it answers to.
        summary: one line.
        formula: what it computes.
        shape: input and output shapes, where they say something.
        source: paper with year and arXiv id, or the library that defines it.
        note: what else to know.
        differs_from: library (`torch`, `keras`, `jax`, `optax`, `timm`, `pytorch-optimizer`) -> how the
            numbers of its block of the same name differ from ours; tests hold each to be just that.
        tags: facts that code asks for, by kind: `elementwise`, `trainable`, `width_ratio`
            (activations), `tasks`, `expects`, `target` (losses), `gradient_degree` (optimizers), `interval`,
            `needs_total` (schedulers), `needs_fan` (initialisers), ...
        package: the pip requirement that brings the target, where it is not a dependency.
        owner: who described it; named when two claim one name.
    """

    kind: str
    name: str
    target: str | Callable[..., Any]
    params: tuple[Param, ...] = ()
    aliases: tuple[str, ...] = ()
    summary: str = ""
    formula: str = ""
    shape: str = ""
    source: str = ""
    note: str = ""
    differs_from: Mapping[str, str] = field(default_factory=dict, hash=False)
    tags: Mapping[str, Any] = field(default_factory=dict, hash=False)
    package: str = ""
    owner: str = "dlblocks"

    def __post_init__(self) -> None:
        for name in ("differs_from", "tags"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __getstate__(self) -> dict[str, Any]:
        # What a read-only view shows can be pickled, the view itself can't.
        return {**vars(self), "differs_from": dict(self.differs_from), "tags": dict(self.tags)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def load(self) -> Callable[..., Any]:
        """Import the target.

        Raises:
            MissingPackageError: the package that holds it is not installed.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            loaded: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not self.package:
                raise
            raise MissingPackageError(
                f"{self.kind} {self.name!r} needs a package that is not installed:"
                f" pip install '{self.package}'"
            ) from error
        for part in attribute.split("."):
            loaded = getattr(loaded, part)
        return loaded  # type: ignore[no-any-return]

    def defaults(self) -> dict[str, Any]:
        """Every parameter with its default, as plain data for a config."""
        return {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in self.params}

    def check(self, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """The given parameters, checked; those not given are left out.

        Raises:
            UserError: an unknown parameter, a wrong type, or a value out of range.
        """
        where = where or self.kind
        by_name = {param.name: param for param in self.params}
        checked = {}
        for key, value in given.items():
            if key not in by_name:
                legal = ", ".join(f"{p.name} (default {shown(p.default)})" for p in self.params)
                raise UserError(
                    f"{where}.{key}: {self.kind} {self.name!r} has no parameter {key!r}."
                    f"{did_you_mean(key, by_name)} Its parameters: {legal or 'none'}."
                )
            checked[key] = by_name[key].check(value, f"{where}.{key}")
        return checked

    def describe(self) -> str:
        """A page of text: what the block computes, its parameters, and where it comes from."""
        lines = [f"{self.kind} {self.name}"]
        if self.aliases:
            lines[0] += f"  (also: {', '.join(self.aliases)})"
        for title in ("summary", "formula", "shape", "source", "note"):
            if text := getattr(self, title):
                lines.append(text if title == "summary" else f"{title}: {text}")
        lines.extend(f"differs from {library}: {how}" for library, how in self.differs_from.items())
        if self.params:
            lines.append("parameters:")
        for param in self.params:
            legal = param.range or (f"one of {', '.join(map(str, param.choices))}" if param.choices else "")
            lines.append(
                f"  {param.name} = {shown(param.default)}  {param.doc}" + (f"; {legal}" if legal else "")
            )
        for tag, value in self.tags.items():
            lines.append(f"{tag}: {', '.join(value) if isinstance(value, tuple) else value}")
        lines.append(f"from: {self.target if isinstance(self.target, str) else self.owner}")
        return "\n".join(lines)


def _inside(value: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    return str(value)
