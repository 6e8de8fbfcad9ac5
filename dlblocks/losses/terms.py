"""The terms of a weighted sum of losses, and what a loss expects, as plain values. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dlblocks.errors import UserError
from dlblocks.records import Block, shown
from dlblocks.registry import parse, parse_whole

SUM = "sum"


@dataclass(frozen=True)
class Term:
    """One term: its block with every parameter, and its weight."""

    block: Block
    weight: float
    params: Mapping[str, Any]


def terms_of(terms: Any, where: str = "loss") -> list[Term]:
    """The terms of `{name: weight}` or `{name: {weight: ..., params}}`, checked.

    Raises:
        UserError: no term, an unknown one, one that is there twice, a weight that is no number, or a sum
            of sums.
    """
    if not isinstance(terms, Mapping) or not terms:
        raise UserError(
            f"{where}.terms={shown(terms)}: must be a mapping of losses to weights, such as {{mse: 1.0, mae: 0.1}}."
        )
    checked: list[Term] = []
    for name, given in terms.items():
        place = f"{where}.terms.{name}"
        spec = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weight = spec.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not isfinite(weight):
            raise UserError(
                f"{place}={shown(weight)}: must be a number, its weight, or {{weight: ..., parameters}}."
            )
        block, params = parse_whole("loss", {"name": str(name), **spec}, {}, place)
        if block.name == SUM:
            raise UserError(f"{place}: a sum has no sums as terms; write its terms here.")
        if "arguments" in block.tags:
            raise UserError(
                f"{place}: is called with {', '.join(block.tags['arguments'])}, not with an input and a target."
            )
        if any(term.block.name == block.name for term in checked):
            raise UserError(f"{place}: is {block.name}, which is a term already; give it one weight.")
        checked.append(Term(block, float(weight), params))
    return checked


def contract(spec: str | Mapping[str, Any], where: str = "loss") -> Mapping[str, Any]:
    """The tags of a loss: `tasks`, `expects`, `target`, ...; of a sum, those that its terms share.

    Raises:
        UserError: terms that expect different things, or serve no task together.
    """
    block, params = parse("loss", spec, where)
    if block.name != SUM:
        return _tags(block, params)
    return shared(terms_of(params.get("terms"), where), where)


def shared(terms: Sequence[Term], where: str = "loss") -> Mapping[str, Any]:
    """The tags that the terms of a sum share.

    Raises:
        UserError: they expect different things, or serve no task together.
    """
    tags = dict(_tags(terms[0].block, terms[0].params))
    for term in terms[1:]:
        other = _tags(term.block, term.params)
        for key in ("expects", "target"):
            if other.get(key) != tags.get(key):
                raise UserError(
                    f"{where}.terms.{term.block.name}: takes {other.get(key)} as {_SIDE[key]},"
                    f" {terms[0].block.name} takes {tags.get(key)}; the terms of a sum must agree."
                )
        tags["tasks"] = tuple(task for task in tags["tasks"] if task in other["tasks"])
    if not tags["tasks"]:
        raise UserError(
            f"{where}.terms: no task fits {' and '.join(term.block.name for term in terms)} alike."
        )
    return tags


def _tags(block: Block, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tags of a loss; what it expects may hang on a parameter: `expects_by`, `{parameter: {value: expects}}`."""
    for name, expects in block.tags.get("expects_by", {}).items():
        if params.get(name) in expects:
            return {**block.tags, "expects": expects[params[name]]}
    return block.tags


_SIDE = {"expects": "input", "target": "target"}
