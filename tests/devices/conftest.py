"""Real processes for the tests of many devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs a program in a process of its own, or in two that torchrun starts; its output."""

    def run(program: str, *arguments: str, processes: int = 1) -> str:
        path = tmp_path / "program.py"
        path.write_text(program)
        pair = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *pair, str(path), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
