"""The run folder: `runs/<date>/<time>-<name>/`, made once and never shared."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from dlblocks.errors import UserError
from dlblocks.processes import rank
from dlblocks.results import Result

# A recipe has some hundred values in four levels; a file beyond these is none.
_LARGEST, _MOST, _DEEPEST = 2**24, 100_000, 50


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


def saved_recipe(folder: str | Path, max_epochs: int | None = None) -> dict[str, Any]:
    """The recipe of a run that is to go on, from its `config.yaml`, read as plain values.

    Raises:
        UserError: no run folder, a damaged file, or nothing left to do.
    """
    recipe = read_recipe(folder)
    try:
        done = read_status(folder) == "completed"
    except UserError as error:
        raise UserError(f"{error} Without that file the run can go on.") from error
    if max_epochs is None:
        if done:
            raise UserError(
                f"resume={folder}: the run is complete. To train longer, raise trainer.max_epochs."
            )
        return recipe
    before = recipe["trainer"].get("max_epochs") if isinstance(recipe.get("trainer"), dict) else None
    if not isinstance(before, int) or max_epochs < before or (done and max_epochs == before):
        raise UserError(f"trainer.max_epochs={max_epochs}: the run has {before}, which can only be raised.")
    return {**recipe, "trainer": {**recipe["trainer"], "max_epochs": max_epochs}}


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """The `config.yaml` of a run folder, as plain values.

    Raises:
        UserError: not there, not YAML, or not a mapping.
    """
    import yaml

    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder, since it has no config.yaml.")
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"{size} bytes are too many")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_extent(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: damaged; it must be a mapping, as `--cfg job` prints.")
    return content


def _check_extent(content: Any) -> None:
    """Refuse what a few aliases blow up to gigabytes as soon as it is printed, and what is nested without end.

    Raises:
        ValueError: says which.
    """
    level, count = [content], 0
    for _ in range(_DEEPEST):
        # Level by level, so that a list of itself ends too.
        level = list(itertools.islice(itertools.chain.from_iterable(map(_inside, level)), _MOST))
        if not level:
            return
        count += len(level)
        if count >= _MOST:
            raise ValueError(f"more than {_MOST} values")
    raise ValueError(f"nested more than {_DEEPEST} deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read_status(folder: str | Path) -> str | None:
    """The status in the `result.json` of a run folder; None if there is no such file.

    Raises:
        UserError: damaged.
    """
    try:
        return Result.load(folder).status
    except FileNotFoundError:
        return None


def last_unfinished(root: str | Path) -> tuple[Path, list[str]]:
    """The newest run folder under `root` whose run can go on, and why newer ones can't.

    Raises:
        UserError: there is none.
    """
    configs = sorted(Path(root).glob("**/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    aside: list[str] = []
    for path in configs:
        folder = path.parent
        if folder.name == ".hydra":
            continue
        try:
            if read_status(folder) == "completed":
                continue
            read_recipe(folder)
            with held(folder):
                return folder, aside
        except UserError as error:
            aside.append(str(error))
    raise UserError(" ".join([f"resume=last: no unfinished run under {root} that can go on.", *aside]))


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Keep a run folder for the training that is in it, until that ends in any way. Only process 0 keeps it.

    File systems and platforms that can't lock a folder let it be shared.

    Raises:
        UserError: another training has it.
    """
    if os.name != "posix" or rank():
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is training in it.") from error
        except OSError:
            pass  # no locks here
        yield
    finally:
        os.close(handle)
