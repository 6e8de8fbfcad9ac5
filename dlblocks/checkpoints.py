"""Checkpoint files: written whole or not at all, and read without running what is in them."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils._pytree import tree_leaves

from dlblocks.errors import UserError

FOLDER = "checkpoints"
# Of the one that a signal leaves in the middle of an epoch.
INTERRUPTED = "interrupted.ckpt"
_PREVIOUS = "-previous"
# Bytes: a buffer may repeat the same numbers.
_CLAIMED = 2**26


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, what `read` found in it, and the key of the recipe that named it, such as `ckpt_path=`."""

    path: Path
    content: dict[str, Any]
    key: str = ""

    def __str__(self) -> str:
        return f"{self.key}{self.path}"


class LastCheckpoint(ModelCheckpoint):
    """Lightning's, but for `every_n_train_steps`: what is due at the last step of an epoch waits for its validation.

    A run that goes on from before the validation leaves that out, with its row in the log and the best checkpoint.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        # What it gives and takes of the batch plays no part in saving.
        super().on_train_batch_end(trainer, pl_module, None, None, 0)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under another name in the same folder, flushes it to the disk and renames it.

    A reader, a crash or a full disk never sees half a checkpoint. The `last` that a new one replaces stays beside it
    as `last-previous.ckpt`.

    Raises:
        UserError: the file can't be written; what was there before still is.
    """

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,  # noqa: ARG002
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """As `read`: on the CPU, and of plain values only."""
        return read(path)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        if storage_options is not None:
            raise TypeError("checkpoints are local files, which have no storage_options.")
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(partial, content)
            if target.stem == "last" and target.exists():
                _keep(target)
            partial.replace(target)
            _flush_folder(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise UserError(
                f"{target}: the checkpoint can't be written ({error.strerror or error}). Checkpoints written before it"
                " are whole."
            ) from error


def _write(path: Path, content: io.BytesIO) -> None:
    with path.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _keep(path: Path) -> None:
    """A second name for the file that is about to be replaced, so that no moment is without a whole one."""
    link = path.with_name(f".{path.name}.{os.getpid()}.previous")
    link.unlink(missing_ok=True)
    os.link(path, link)
    link.replace(path.with_stem(path.stem + _PREVIOUS))


def _flush_folder(folder: Path) -> None:
    """The rename itself is on the disk only after this. Windows can't open a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: str | os.PathLike[str], where: str = "") -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU. Nothing that is in the file is run.

    Args:
        path: of the file.
        where: what to put before the path in an error, such as `ckpt_path=`.

    Raises:
        UserError: no such file; damaged; or it holds more than plain values and tensors.
    """
    name = f"{where}{path}"
    if not Path(path).is_file():
        raise UserError(f"{name}: no such file.")
    try:
        _verify(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(content)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        wanted = f"it asks for {found[1]}" if found else str(error).splitlines()[0]
        raise UserError(f"{name}: damaged, or not a checkpoint of plain values ({wanted}).") from error
    except MemoryError as error:
        raise UserError(f"{name}: damaged, or too large for the memory.") from error
    except Exception as error:
        raise UserError(f"{name}: damaged, or not a checkpoint of plain values ({error}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise UserError(f"{name}: not a Lightning checkpoint, since it has no state_dict.")
    return content


def _verify(path: Path) -> None:
    """Refuse a file that is not a whole zip, or that unpacks to more than it is: torch stores without packing."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"its parts claim {size} bytes")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"{broken} has another checksum")


def _check_sizes(content: Any) -> None:
    """Refuse tensors that claim far more numbers than are stored, as the first operation would make room for them.

    Raises:
        ValueError: says how many bytes they claim.
    """
    claimed = 0
    for value in tree_leaves(content):
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            size = value.numel() * value.element_size()
            claimed += size if size > value.untyped_storage().nbytes() else 0
    if claimed > _CLAIMED:
        raise ValueError(f"its tensors claim {claimed} bytes that are not in it")


def fitting(content: Mapping[str, Any], module: nn.Module, name: str) -> None:
    """Check that the weights of a checkpoint are those of a module.

    Raises:
        UserError: a weight is missing, left over, no tensor, or of another shape.
    """
    theirs = {key: tuple(getattr(value, "shape", ())) for key, value in content["state_dict"].items()}
    ours = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for key in sorted(theirs.keys() | ours.keys(), key=str):
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f"{name}: is of another net; {key} is {theirs.get(key, 'missing')} there and"
                f" {ours.get(key, 'missing')} here."
            )


def newest(folder: str | Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint of a run folder that is furthest on, and what is wrong with those that can't be read.

    Args:
        folder: of the run; its checkpoints are in `checkpoints/`.
    """
    best: tuple[int, float] = (-1, 0.0)
    found = None
    bad = []
    for path in sorted((Path(folder) / FOLDER).glob("*.ckpt")):
        if path.name.startswith("."):
            continue
        try:
            content = read(path)
        except UserError as error:
            bad.append(str(error))
            continue
        step, written = content.get("global_step"), path.stat().st_mtime
        if isinstance(step, int) and (step, written) > best:
            best, found = (step, written), Checkpoint(path, content)
    return found, bad


def tidy(folder: str | Path) -> None:
    """Remove what a kill left half-written in the checkpoints of a run folder."""
    for path in (Path(folder) / FOLDER).glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)
