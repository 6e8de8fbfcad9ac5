"""Command lines of `key=value` arguments, for scripts that need no recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from dlblocks.errors import UserError, did_you_mean
from dlblocks.records import Param
from dlblocks.terminal import say


def command(
    doc: str,
    params: Sequence[Param],
    work: Callable[..., None],
    required: Sequence[str] = ("run",),
) -> int:
    """Run a script on `sys.argv`, with every mistake ending in one message.

    Args:
        doc: what `--help` shows above the keys.
        params: the keys.
        work: called with all of them as keyword arguments.
        required: the keys that have to be given.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(_help(doc, params, required))
        return 0
    try:
        work(**parse(arguments, params, required))
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except UserError as error:
        say(f"error: {error}")
        return 1
    except OSError as error:
        say(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
        return 1
    return 0


def parse(arguments: Sequence[str], params: Sequence[Param], required: Sequence[str] = ()) -> dict[str, Any]:
    """The value of each parameter, from words such as `split=val`.

    Raises:
        UserError: an unknown or missing key, one given twice, or a value that is not legal.

    >>> parse(["size=3"], [Param("size", 1, "int", "of it"), Param("fast", False, "bool", "or slow")])
    {'size': 3, 'fast': False}
    """
    known = {param.name: param for param in params}
    given: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            what = "unknown key" if equals else "arguments are key=value"
            raise UserError(f"{key}: {what}.{did_you_mean(key.lstrip('-'), known)} Keys: {', '.join(known)}.")
        if key in given:
            raise UserError(f"{key}: given twice.")
        given[key] = known[key].check(_value(known[key], text), key)
    if missing := [key for key in required if not given.get(key)]:
        raise UserError(f"{missing[0]}: missing; {known[missing[0]].doc}. --help shows all keys.")
    return {key: given.get(key, param.default) for key, param in known.items()}


def _value(param: Param, text: str) -> Any:
    if text == "null" and (param.optional or param.default is None):
        return None
    try:
        match param.type:
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(text)
    except (KeyError, ValueError):
        pass  # the parameter says what is legal
    return text


def _help(doc: str, params: Sequence[Param], required: Sequence[str]) -> str:
    lines = [doc.strip(), "", "Keys:"]
    width = max(len(param.name) for param in params)
    for param in params:
        legal = f" ({', '.join(map(str, param.choices))})" if param.choices else ""
        default = {None: "null", True: "true", False: "false"}.get(param.default, param.default)
        end = "required" if param.name in required else f"default {default}"
        lines.append(f"  {param.name:{width}}  {param.doc}{legal}; {end}")
    return os.linesep.join(lines)
