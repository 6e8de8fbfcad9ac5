"""Runs of foreign modules without files and noise, here and in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
# What Lightning warns of in small tests.
SMALL = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
FEW_BATCHES = pytest.mark.filterwarnings("ignore:The number of training batches")


def run_script(folder: Path, program: str, *arguments: str) -> str:
    """Run a program from a file, as a launcher of processes needs it; what it said."""
    script = folder / "script.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
