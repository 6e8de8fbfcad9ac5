"""How a run that fails is told: one message, and the traceback in a file."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from dlblocks import processes
from dlblocks.errors import UserError
from dlblocks.results import told
from dlblocks.terminal import say

# Seconds in which a process that was killed is gone.
_GRACE = 0.5


def debug_asked(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for tracebacks."""
    return any(argument.lower() == "debug=true" for argument in arguments)


def message_of(error: Exception, folder: str, debug: bool) -> str:
    """What ended a run. The traceback of what is no mistake of the user goes to `traceback.txt`.

    Args:
        error: that ended it.
        folder: of the run.
        debug: give the traceback itself.
    """
    if debug:
        return "".join(traceback.format_exception(error))
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or folder}: {error.strerror or error}"
    path = Path(folder) / "traceback.txt"
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as full:
        return f"{told(error)}. {path} can't be written ({full.strerror or full}); debug=true shows the traceback."
    return f"{told(error)}. The traceback is in {path}; debug=true shows it."


def tell_main(message: str, folder: str) -> None:
    """What ended one of several processes: told by the main one if that started it, else here."""
    if not _main_is_gone():
        processes.leave_message(folder, message)
        if not _main_goes():
            return
        processes.taken_message(folder, processes.rank())
    say(f"error: rank {processes.rank()}: {message}")


def _main_goes() -> bool:
    """Whether the main process is on its way out: the connections of a killed one are gone a little before it is."""
    end = time.monotonic() + _GRACE
    while time.monotonic() < end:
        time.sleep(_GRACE / 10)
        if _main_is_gone():
            return True
    return False


def _main_is_gone() -> bool:
    """Whether this is no child of the process that started the run, or of none: another program started it."""
    return processes.starter() != os.getppid()
