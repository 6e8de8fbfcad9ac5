"""The Lightning Trainer of a recipe, with its callbacks and loggers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only

from dlblocks.checkpoints import AtomicCheckpoints
from dlblocks.errors import MissingPackageError, UserError, did_you_mean
from dlblocks.instantiate import instantiate
from dlblocks.processes import rank, started_outside

# Optional packages that dlblocks has an extra for.
_EXTRAS = ("mlflow", "tensorboard", "wandb")


def build_trainer(
    config: Mapping[str, Any], callbacks: list[Callback], loggers: list[Logger], folder: Path
) -> L.Trainer:
    """The Trainer, after a check that this machine can do what is asked.

    Raises:
        UserError: an argument the Trainer doesn't have, or a device or precision that is not here.
    """
    legal = inspect.signature(L.Trainer.__init__).parameters
    for key in config:
        if key not in legal or key in ("self", "callbacks", "logger", "default_root_dir"):
            raise UserError(
                f"trainer.{key}: lightning.Trainer has no such argument.{did_you_mean(key, legal)}"
            )
    _check_device(config)
    # Lightning adds a checkpoint, a bar and a summary of its own unless told not to.
    given = {
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_model_summary": any(isinstance(callback, ModelSummary) for callback in callbacks),
        **config,
    }
    if given.get("sync_batchnorm") and (
        given.get("strategy") == "fsdp2" or given.get("accelerator") == "cpu"
    ):
        from dlblocks.sync_batch_norm import SyncBatchNorm

        given["sync_batchnorm"], callbacks = False, [*callbacks, SyncBatchNorm()]
    plugins = given.pop("plugins", None) or ([] if _own_files(given) else [AtomicCheckpoints()])
    if given.get("strategy") == "fsdp2":
        given["strategy"] = _sharded(given)
    try:
        trainer = L.Trainer(
            **given, plugins=plugins, callbacks=callbacks, logger=loggers or False, default_root_dir=folder
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}") from error
    processes = trainer.num_devices * trainer.num_nodes
    if started_outside() not in (0, processes):
        raise UserError(
            f"trainer.devices={trainer.num_devices}, trainer.num_nodes={trainer.num_nodes}: are {processes}"
            f" processes, and torchrun started {started_outside()}; set trainer.devices to its --nproc-per-node and"
            " trainer.num_nodes to its --nnodes, as with trainer=ddp trainer.devices=2."
        )
    return trainer


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints, of all that train together."""
    return not (getattr(rank_zero_only, "rank", 0) or rank())


def _sharded(config: Mapping[str, Any]) -> Strategy:
    from dlblocks.sharding import PRECISIONS, ShardedStrategy

    if (precision := config.get("precision", "32-true")) not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision}: a net divided by strategy=fsdp2 has {', '.join(PRECISIONS)}."
        )
    return ShardedStrategy()


def _own_files(config: Mapping[str, Any]) -> bool:
    """Whether the strategy is one of Lightning's that divide the net, which have their own way with checkpoints."""
    strategy = str(config.get("strategy", "")).lower()
    return strategy != "fsdp2" and any(word in strategy for word in ("fsdp", "parallel", "deepspeed"))


def _check_device(config: Mapping[str, Any]) -> None:
    here = [
        name
        for name in ("cpu", "cuda", "mps", "tpu")
        if AcceleratorRegistry[name]["accelerator"].is_available()
    ]
    asked = config.get("accelerator", "auto")
    wanted = {"gpu": ("cuda", "mps"), "auto": tuple(here)}.get(asked, (asked,))
    found = [name for name in here if name in wanted]
    if not found:
        raise UserError(f"trainer.accelerator={asked}: not on this machine. Here: {', '.join(here)}.")
    only_cpu = found == ["cpu"]
    devices = config.get("devices", 1)
    if isinstance(devices, bool) or not isinstance(devices, (int, str, list, tuple)) or devices in (0, []):
        raise UserError(
            f"trainer.devices={devices}: must be a number of at least 1, a list of devices, or auto."
        )
    if isinstance(devices, int) and devices > 0 and not only_cpu:
        count = max(AcceleratorRegistry[name]["accelerator"].auto_device_count() for name in found)
        if devices > count:
            raise UserError(f"trainer.devices={devices}: this machine has {count}.")
    if reason := _unfit_precision(str(config.get("precision")), found):
        raise UserError(f"trainer.precision={config['precision']}: {reason}")


def _unfit_precision(precision: str, devices: Sequence[str]) -> str | None:
    """Why none of the devices that may be taken has a precision; None if one has."""
    if precision == "16-mixed" and devices == ["cpu"]:
        return "half precision with gradient scaling needs a GPU. On the CPU use bf16-mixed."
    if precision == "16-true" and devices == ["cpu"]:
        return "torch's half precision is for GPUs; it overflows at 65504. On the CPU use bf16-true."
    if precision == "64-true" and devices == ["mps"]:
        return "Apple GPUs have no double precision. Use 32-true, or trainer.accelerator=cpu."
    if precision.startswith("bf16") and devices[0] == "cuda" and not _has_bfloat16():
        return "this GPU has no bfloat16. Use 16-mixed, which scales the gradients."
    return None


def _has_bfloat16() -> bool:
    import torch

    found: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return found


def build_callbacks(config: Mapping[str, Any], words: Mapping[str, str]) -> list[Callback]:
    """The callbacks of a recipe; an entry that is null is left out."""
    return [
        instantiate(fill(entry, words), Callback, f"callbacks.{key}")
        for key, entry in config.items()
        if entry is not None
    ]


def build_loggers(config: Mapping[str, Any], words: Mapping[str, str]) -> list[Logger]:
    """The loggers of a recipe; an entry that is null is left out.

    Raises:
        MissingPackageError: the logger's package is not installed; holds the pip command.
    """
    built = []
    for key, entry in config.items():
        if entry is None:
            continue
        try:
            # The test is of a subclass; that Logger itself can't be built does not matter.
            built.append(instantiate(fill(entry, words), Logger, f"logger.{key}"))  # type: ignore[type-abstract]
        except MissingPackageError as error:
            command = f"pip install 'dlblocks[{key}]'" if key in _EXTRAS else str(error)
            raise MissingPackageError(
                f"logger={key}: needs a package that is not installed: {command}"
            ) from error
    return built


def fill(value: Any, words: Mapping[str, str]) -> Any:
    """Replace `<run>`, `<metric>`, `<mode>` and the like in all texts of a config."""
    if isinstance(value, str):
        for word, meaning in words.items():
            value = value.replace(f"<{word}>", meaning)
        return value
    if isinstance(value, Mapping):
        return {key: fill(item, words) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(item, words) for item in value]
    return value
