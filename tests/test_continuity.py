"""What lets a run go on, where processes and files do not show it."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlblocks.continuity import Interrupted, StopAtSignal


def test_a_signal_while_processes_agree_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopAtSignal(tmp_path)
    trainer = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        checkpoint_callback=object(),
        current_epoch=0,
    )
    arriving = iter([signal.SIGTERM, None])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def reduced(number: torch.Tensor, op: object) -> None:  # noqa: ARG001
        if (arrived := next(arriving)) is not None:
            stop._note(arrived, None)

    monkeypatch.setattr("torch.distributed.all_reduce", reduced)
    try:
        stop.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]  # the others go on, so must this one
        with pytest.raises(Interrupted):
            stop.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
