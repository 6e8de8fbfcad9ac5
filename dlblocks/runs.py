"""The run folder: `runs/<date>/<time>-<name>/`, made once and never shared."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path


def new_folder(root: str | Path, name: str) -> str:
    """Make and return a new folder `<root>/<date>/<time>-<name>`.

    Two runs that start in the same second get two folders: the second one's name ends in `-2`.

    Raises:
        OSError: the folder can't be made.
    """
    now = datetime.now()
    day = Path(root) / f"{now:%Y-%m-%d}"
    day.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count(1):
        folder = day / (f"{now:%H-%M-%S}-{name}" + (f"-{attempt}" if attempt > 1 else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return str(folder)
    raise AssertionError("itertools.count never ends")
