"""Memory: what is there, what is used, and which errors say that it ran out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlblocks.tuning import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_out_of_memory(error: BaseException) -> None:
    assert memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()]
)
def test_other_errors(error: BaseException) -> None:
    assert not memory.is_out_of_memory(error)


def test_real_allocators_are_recognised() -> None:
    for too_much in (lambda: torch.empty(2**46), lambda: np.empty(2**46)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            too_much()
        assert memory.is_out_of_memory(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_what_was_used_for_a_while() -> None:
    memory.start_peak(CPU)
    before = memory.in_use(CPU)
    held = torch.ones(2**25)
    del held
    assert 0.9 * 2**27 < memory.peak(CPU) - before < 1.5 * 2**27


V2 = ("0::/a/b", "", "memory.max", "memory.current", "inactive_file")
V1 = ("4:memory:/a/b", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("line", "root", "limit", "used", "cached"), [V2, V1], ids=["version 2", "version 1"]
)
@pytest.mark.parametrize(
    ("inner", "outer", "free"), [(1000, "max", 700), (1000, 500, 500), ("max", "max", None)]
)
def test_the_limits_of_all_groups_around_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    root: str,
    limit: str,
    used: str,
    cached: str,
    inner: Any,
    outer: Any,
    free: int | None,
) -> None:
    """Files that have been read are given back when memory is wanted."""
    top = tmp_path / root
    for folder, most, taken in ((top / "a" / "b", inner, 400), (top / "a", outer, 100)):
        folder.mkdir(parents=True, exist_ok=True)
        unlimited = "max" if root == "" else str(2**63 - 4096)
        (folder / limit).write_text(f"{unlimited if most == 'max' else most}\n")
        (folder / used).write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} 100\n")
    lines = tmp_path / "cgroup"
    lines.write_text(f"9:cpu:/elsewhere\n{line}\n")
    monkeypatch.setattr(memory, "_CGROUP", lines)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    found = memory._of_container()
    assert found == free or (free is None and found is not None and found > 2**60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_a_limit_of_the_process_counts() -> None:
    code = """
import resource, torch
from dlblocks.tuning import memory
free = memory.available(torch.device("cpu"))
size = memory._status("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, resource.RLIM_INFINITY))
limited = memory.available(torch.device("cpu"))
assert free > 2**28 and 2**27 < limited <= 2**28, (free, limited)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
