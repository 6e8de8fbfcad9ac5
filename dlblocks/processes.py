"""Which of several processes this is, and who started them; read from the environment, without torch."""

from __future__ import annotations

import os
from pathlib import Path

# The id of the process that started this one to train with it.
STARTER = "DLBLOCKS_STARTED_BY"
# The run folder of that process, which this one joins.
JOINED = "DLBLOCKS_RUN_FOLDER"
# Set by torchrun, by Lightning in the processes that it starts, by Slurm, and by hand on each machine.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")


def rank() -> int:
    """The number of this process; 0 only for the one that writes files and prints."""
    return next((number for name in _RANKS if (number := int(os.environ.get(name, 0)))), 0)


def started_outside() -> int:
    """How many processes torchrun started; 0 if it did not."""
    return int(os.environ.get("WORLD_SIZE", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def starter() -> int | None:
    """The id of the process that started this one to train with it; None if this is the main one."""
    return int(os.environ[STARTER]) if STARTER in os.environ else None


def joined_folder() -> str | None:
    """The run folder of the process that started this one to train with it; None if this is the main one."""
    return os.environ.get(JOINED)


def leave_message(folder: str | Path, text: str) -> None:
    """What ended this process, for the main one to tell."""
    _note(folder, rank()).write_text(text, encoding="utf-8")


def taken_message(folder: str | Path, number: int) -> str | None:
    """What a process left, once."""
    note = _note(folder, number)
    if not note.exists():
        return None
    text = note.read_text(encoding="utf-8")
    note.unlink()
    return text


def _note(folder: str | Path, number: int) -> Path:
    return Path(folder) / f".ended-{number}"
