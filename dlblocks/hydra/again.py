"""`resume=` and `repeat=`: a run folder says what to do, and nothing is composed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dlblocks import processes
from dlblocks.errors import UserError
from dlblocks.hydra.endings import debug_asked, message_of, tell_main
from dlblocks.recipe import check
from dlblocks.results import Result
from dlblocks.runs import last_unfinished, new_folder, read_recipe
from dlblocks.terminal import say, show

_WORDS = ("resume", "repeat")


def asked(arguments: Sequence[str]) -> bool:
    """Whether the command line names a run folder to go on with or to repeat."""
    return any(word.partition("=")[0] in _WORDS and "=" in word for word in arguments)


def run_again(arguments: Sequence[str]) -> int:
    """Resume or repeat a run; the exit code.

    `resume=<run folder>`, or `resume=last` for the newest unfinished run under `root`, goes on in the folder; only
    `trainer.max_epochs` can be raised. `repeat=<run folder>` trains its recipe again in a new folder under `root`.
    `debug=true` shows tracebacks.

    Args:
        arguments: of the command line.
    """
    folder = ""
    try:
        settings = _settings(arguments)
        folder, run = _repetition(settings) if "repeat" in settings else _continuation(settings)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        result = run()
    except KeyboardInterrupt as error:
        say("interrupted")
        return int(getattr(error, "code", 130))
    except Exception as error:
        message = message_of(error, folder, debug_asked(arguments))
        if processes.rank():
            tell_main(message, folder)
        else:
            say(f"error: {message}")
        return 1
    from dlblocks.trainer import is_main_process

    if is_main_process():
        show(result.table())
    return 0


def _repetition(settings: dict[str, str]) -> tuple[str, Callable[[], Result]]:
    """The new folder of a run that is repeated, and what trains it."""
    recipe = read_recipe(settings["repeat"])
    recipe |= {"root": settings["root"]} if "root" in settings else {}
    checked = check(recipe)
    from dlblocks.training import train

    folder = processes.joined_folder() or new_folder(checked.run["root"], checked.run["name"])
    return folder, lambda: train(recipe, folder)


def _continuation(settings: dict[str, str]) -> tuple[str, Callable[[], Result]]:
    """The folder of a run that goes on, and what trains it."""
    folder = settings["resume"]
    if folder == "last":
        folder = processes.joined_folder() or _last(settings.get("root", "runs"))
    epochs = settings.get("trainer.max_epochs")
    if epochs is not None and not epochs.isdecimal():
        raise UserError(f"trainer.max_epochs={epochs}: must be a whole number.")
    if not Path(folder).is_dir():
        raise UserError(f"resume={folder}: no such folder.")
    from dlblocks.training import resume

    return folder, lambda: resume(folder, None if epochs is None else int(epochs))


def _last(root: str) -> str:
    """The newest run folder that can go on; those before it that can't are told."""
    folder, aside = last_unfinished(root)
    if not processes.rank():
        for reason in aside:
            say(f"left aside: {reason}")
    return str(folder)


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    given = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key in given:
            raise UserError(f"{word}: can't stand beside resume= or repeat=.")
        given[key] = value
    word = "repeat" if "repeat" in given else "resume"
    legal = {
        "resume": ("resume", "root", "trainer.max_epochs", "debug"),
        "repeat": ("repeat", "root", "debug"),
    }[word]
    for key, value in given.items():
        if key not in legal:
            raise UserError(
                f"{key}={value}: {word}={given[word]} has its own recipe, config.yaml in the run folder. It can be"
                f" given with {', '.join(legal[1:])} only."
            )
    if given.get("debug", "true").lower() not in ("true", "false"):
        raise UserError(f"debug={given['debug']}: must be true or false.")
    if "root" in given and word == "resume" and given["resume"] != "last":
        raise UserError(
            f"root={given['root']}: has no effect, since resume names the folder; use resume=last."
        )
    return given
