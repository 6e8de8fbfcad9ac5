"""Run folders that were moved between two parts of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class Moved(Callback):
    """Lets `ModelCheckpoint` know its checkpoints where they are now; it forgets the best ones of another folder."""

    def on_load_checkpoint(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        states = checkpoint.get("callbacks", {})
        for callback in trainer.checkpoint_callbacks:
            state = states.get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state and callback.dirpath:
                states[callback.state_key] = _moved(state, str(callback.dirpath))


def _moved(state: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The state of a `ModelCheckpoint` with its paths in another folder."""
    before = state["dirpath"]

    def now(path: str) -> str:
        inside = path and Path(path).is_relative_to(before)
        return os.path.join(folder, os.path.relpath(path, before)) if inside else path

    paths = {key: now(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
    kept = {now(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": kept, "dirpath": folder}
