"""A process that is killed in the middle of a search leaves no file behind: a search writes none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import dlblocks

class Module(L.LightningModule):
    steps = 0
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)
    def training_step(self, batch, batch_idx):
        Module.steps += 1
        if Module.steps == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

loader = DataLoader(TensorDataset(torch.randn(64, 3)), batch_size=16)
trainer = L.Trainer(accelerator="cpu", max_epochs=8, enable_progress_bar=False, enable_model_summary=False)
getattr(dlblocks, sys.argv[1])(trainer, Module(), train_dataloaders=loader)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL")
@pytest.mark.parametrize("finder", ["find_lr", "find_batch_size"])
def test_a_killed_search_leaves_no_file(finder: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, finder], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.rglob("*")) == []
