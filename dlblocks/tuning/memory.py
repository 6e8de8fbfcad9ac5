"""How much memory there is, how much is used, and whether an error says that it ran out."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

# What allocators write that raise no class of their own; lower case.
_MESSAGES = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "out of memory",
    "cannot allocate memory",
    "cudnn_status_not_supported. this error may appear if you passed in a non-contiguous input",
    "cublas_status_alloc_failed",
)
# Where Linux says which control groups a process is in, and what they may take.
_CGROUP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the CPU (torch, NumPy or Python), a CUDA device or MPS."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(
        text in str(error).lower() for text in _MESSAGES
    )


def release(device: torch.device, broken: bool = False) -> None:
    """Give the device back what is no longer referred to; after a `broken` step also what is only by a cycle."""
    if broken:
        gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        _give_back()


def in_use(device: torch.device) -> int:
    """Bytes in use now: of the device's allocator, or of the process on the CPU; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _status("VmRSS")


def start_peak(device: torch.device) -> None:
    """Begin to look for a new peak, where the platform allows; else the peak is that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        # Linux: writing 5 sets the peak of the resident memory back.
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return


def peak(device: torch.device) -> int:
    """The most bytes in use since `start_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _status("VmHWM")


def available(device: torch.device) -> int | None:
    """Bytes that can still be taken: of the device, or on the CPU the least of what the machine, a container's
    limit and the process's own limit leave. None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    known = [value for value in (_of_machine(), _of_container(), _of_process()) if value is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _of_container() -> int | None:
    """Of the control groups that the process is in, and those around them: version 2 or 1."""
    try:
        lines = _CGROUP.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    rooms: list[int] = []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if not kinds:
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = root / place.lstrip("/")
        # Inside a container the place may be one of the machine's, which is not seen there.
        groups = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
        rooms += [room for folder in groups if (room := _of_group(folder, *names)) is not None]
    return min(rooms) if rooms else None


def _of_group(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        taken = int((folder / used).read_text(encoding="ascii"))
        details = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    # Files that have been read stay in memory until it is wanted.
    cached = sum(int(value) for key, value in map(str.split, details) if key == reclaimable)
    return max(0, int(most) - taken + cached)


def _of_process() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - _status("VmSize"))


def _give_back() -> None:
    """Let the C library give what is free back to the system; only GNU's can be asked."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def _status(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name) or 0


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None
