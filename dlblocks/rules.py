"""Rules that give single parameters an initialiser of their own: `{pattern: initialiser, ...}`.

A pattern is a shell pattern on the parameter's dotted name (`0.weight`, `*.bias`, `layer?.*`). The first
that matches wins. They come beside an initialiser's own parameters, under the key `rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from dlblocks.errors import UserError
from dlblocks.records import shown
from dlblocks.registry import Spec, spell_out

KEY = "rules"


def split(init: Spec, where: str = "init") -> tuple[Spec, dict[str, Spec]]:
    """The initialiser alone, and its rules.

    Raises:
        UserError: rules that are no mapping.
    """
    if not isinstance(init, Mapping) or KEY not in init:
        return init, {}
    rules = init[KEY]
    if rules is not None and not isinstance(rules, Mapping):
        raise UserError(
            f"{where}.{KEY}={shown(rules)}: must be a mapping {{pattern: initialiser, ...}}, such as"
            " {'0.weight': orthogonal, '*.bias': {name: constant, value: 0.1}}."
        )
    return {key: value for key, value in init.items() if key != KEY}, dict(rules or {})


def spell_out_with_rules(init: str | Mapping[str, Any], where: str = "init") -> dict[str, Any]:
    """As `registry.spell_out`, with the rules spelled out too; None where there are none."""
    alone, rules = split(init, where)
    spelled = {
        pattern: spell_out("initializer", spec, f"{where}.{KEY}.{pattern}")
        if isinstance(spec, (str, Mapping))
        else spec
        for pattern, spec in rules.items()
    }
    return {**spell_out("initializer", alone, where), KEY: spelled or None}


def assign(
    names: Mapping[int, Iterable[str]], patterns: Iterable[str], where: str = "init"
) -> dict[int, str]:
    """The pattern of each parameter that one matches.

    Args:
        names: key of a parameter -> its names; one that modules share has several.
        patterns: in order of precedence.
        where: the place in the config, for messages.

    Raises:
        UserError: a pattern that matches nothing, or nothing that is left.
    """
    assigned: dict[int, str] = {}
    for pattern in patterns:
        matched = [key for key, own in names.items() if any(fnmatchcase(name, pattern) for name in own)]
        if not matched:
            legal = [name for own in names.values() for name in own]
            listed = ", ".join(legal[:20]) + (", ..." if len(legal) > 20 else "")
            raise UserError(
                f"{where}.{KEY}.{pattern}: matches no parameter of the model. They are: {listed}."
            )
        left = [key for key in matched if key not in assigned]
        if not left:
            earlier = ", ".join(dict.fromkeys(assigned[key] for key in matched))
            raise UserError(
                f"{where}.{KEY}.{pattern}: has no effect, since all that it matches is matched by {earlier}"
                " before. Put it first, or leave it out."
            )
        assigned.update(dict.fromkeys(left, pattern))
    return assigned
