"""Real processes for the tests of many devices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a program in a process of its own, or in several that torchrun starts; what it said."""

    def run(program: str, processes: int = 1, **environment: str) -> str:
        tmp_path = tmp_path_factory.mktemp("script")
        path = tmp_path / "program.py"
        path.write_text(program)
        pair = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *pair, str(path)],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
