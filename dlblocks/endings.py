"""Several processes that train together end together: one that ends before its time takes the rest with it.

Lightning kills the main process where another one dies, so that nothing can be said or written any more, and
leaves the others waiting where the main one dies.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from types import NoneType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.distributed import DistNetworkError, DistStoreError

from dlblocks.errors import UserError, first_line
from dlblocks.processes import JOINED, STARTER, rank, starter, taken_message

# Seconds: between two looks at the others, and for a process to find out by itself.
_LOOK, _GRACE = 0.2, 3.0
# What gloo says where another process is gone.
_LOST = ("connection closed", "connection reset", "socket closed", "broken pipe", "connection refused")


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes as Lightning's does, but without the observer that kills this one."""

    folder = Path()

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("trainer", None)
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ |= {STARTER: str(os.getpid()), JOINED: str(self.folder)}
            try:
                self._call_children_scripts()
            finally:
                del os.environ[STARTER], os.environ[JOINED]
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


@contextmanager
def together(trainer: pl.Trainer, folder: Path, last_words: Callable[[str], None]) -> Iterator[None]:
    """Train in it. Where another process ends before its time, this one does so too, with the reason.

    Args:
        trainer: whose processes these are.
        folder: where processes leave what ended them.
        last_words: called with the reason in the main process where its main thread waits for ever, so that
            nothing can be raised there; then the process ends with code 1.

    Raises:
        UserError: another process ended, or could not be reached.
    """
    strategy = trainer.strategy
    # A strategy that divides the net has none in the processes that were started already.
    own = isinstance(strategy.launcher, (_SubprocessScriptLauncher, NoneType))
    if not own or not isinstance(strategy, (DDPStrategy, FSDPStrategy, ModelParallelStrategy)):
        yield
        return
    assert strategy.cluster_environment is not None
    launcher = Launcher(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)
    launcher.folder = folder
    strategy._launcher = launcher
    done = threading.Event()

    def told() -> str | None:
        return _told(launcher.procs, folder)

    main = starter()
    watch = _watch_main if main is not None else _watch_others
    threading.Thread(target=watch, args=(main or launcher, done, told, last_words), daemon=True).start()
    try:
        yield
    except UserError:
        _stop(launcher.procs)
        raise
    except Exception as error:
        reason = _soon(told) if launcher.procs else None
        _stop(launcher.procs)
        if reason is None and isinstance(error, (DistNetworkError, DistStoreError)):
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = (
                f"the processes can't meet at {place} ({first_line(error)}). Set MASTER_ADDR and MASTER_PORT to a"
                " free port of the main machine that all can reach; on one machine, leave them unset."
            )
        if reason is None and any(word in str(error).lower() for word in _LOST):
            reason = f"another process of this run ended before its time ({first_line(error)})."
        if reason is None:
            raise
        raise UserError(reason) from error
    finally:
        done.set()


def _watch_others(
    launcher: Launcher,
    done: threading.Event,
    told: Callable[[], str | None],
    last_words: Callable[[str], None],
) -> None:
    """In the main process: if another one failed and the main thread does not find out, end."""
    while not done.wait(_LOOK):
        if _failed(launcher.procs) and not done.wait(_GRACE):
            last_words(told() or "another process of this run failed.")
            _stop(launcher.procs)
            _end()


def _watch_main(main: int, done: threading.Event, *_: object) -> None:
    """In another process: if the main one is gone, end."""
    while not done.wait(_LOOK):
        if os.getppid() != main and not done.wait(_GRACE):
            print(f"error: the main process is gone, so rank {rank()} ends too.", file=sys.stderr, flush=True)
            _end()


def _failed(processes: list[Popen[bytes]]) -> list[tuple[int, int]]:
    """The numbers of the processes that ended by a failure, and their exit codes."""
    return [(number, code) for number, process in enumerate(processes, 1) if (code := process.poll())]


def _told(processes: list[Popen[bytes]], folder: Path) -> str | None:
    failed = _failed(processes)
    if not failed:
        return None
    number, code = failed[0]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    said = taken_message(folder, number)
    return f"the process of rank {number}, of {len(processes) + 1} processes, {how}" + (
        f": {said}" if said else "."
    )


def _soon(told: Callable[[], str | None]) -> str | None:
    """What is told within the grace: a process is not gone as soon as its connections are."""
    end = time.monotonic() + _GRACE
    while (reason := told()) is None and time.monotonic() < end:
        time.sleep(_LOOK)
    return reason


def _stop(processes: list[Popen[bytes]]) -> None:
    """End those that don't end by themselves."""
    end = time.monotonic() + _GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(_LOOK)
    for process in processes:
        process.kill()
        process.wait()


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
