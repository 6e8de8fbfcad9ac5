"""The command line: Hydra composes, the library trains, and every mistake ends in one message."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlblocks import processes
from dlblocks.errors import UserError
from dlblocks.hydra import register
from dlblocks.hydra.endings import debug_asked, message_of, tell_main
from dlblocks.hydra.plain import plain
from dlblocks.recipe import check, check_panels
from dlblocks.results import Result, told
from dlblocks.runs import held
from dlblocks.sweeps.picture import Panel
from dlblocks.sweeps.record import SweepRecord
from dlblocks.terminal import say, show

PACKAGED_CONF = "pkg://dlblocks.conf"


def main(config_path: str | Path = PACKAGED_CONF, config_name: str = "train") -> int:
    """Run the training application on `sys.argv`.

    Args:
        config_path: the folder of the recipes; by default those that the package carries.
        config_name: the recipe.

    Returns:
        The exit code: 0, 1 after an error or if a run of a sweep failed, 130 after Ctrl-C, 143 after SIGTERM.
    """
    from dlblocks.hydra.again import asked, run_again

    if asked(sys.argv[1:]):
        return run_again(sys.argv[1:])
    register()
    _share_config_store()
    if processes.rank() and processes.starter() is None:
        # Another program started it, to join a run whose folder is that of process 0; its own would be empty.
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null"]
    jobs = Jobs()
    application = hydra.main(version_base="1.3", config_path=str(config_path), config_name=config_name)(
        jobs.run
    )
    try:
        with _errors_come_through():
            application()
    except KeyboardInterrupt as error:
        say("interrupted")
        return jobs.finish(getattr(error, "code", 130))
    except Exception as error:
        if debug_asked(sys.argv[1:]):
            traceback.print_exc()
        else:
            from dlblocks.hydra.explain import explain

            say(f"error: {explain(error, sys.argv[1:], str(config_path), config_name)}")
        return jobs.finish(1)
    return jobs.finish(0)


class Jobs:
    """Runs what Hydra composes, and gathers the runs of a sweep. One that fails does not stop the rest."""

    def __init__(self) -> None:
        self.sweep: SweepRecord | None = None
        self.panels: list[Panel] = []
        self.failed = False
        self.started = 0
        self.multirun = bool({"-m", "--multirun"} & set(sys.argv))

    def run(self, config: DictConfig) -> float | None:
        """One job; returns the main validation metric, which a sweeper may optimise."""
        self.started += 1
        settings = HydraConfig.get()
        if settings.mode == RunMode.MULTIRUN and processes.started_outside() > 1:
            raise UserError(
                "a sweep starts the processes of each run by itself: leave out torchrun, or start each run with it."
            )
        if settings.mode == RunMode.MULTIRUN and self.sweep is None:
            recipe = plain(config)
            check_panels(recipe)  # a mistake there is one of all runs
            self.sweep = SweepRecord(Path(settings.sweep.dir))
            panels = recipe.get("sweep", {}).get("panels") or []
            self.panels = [Panel(**panel) for panel in panels]
        folder = os.path.relpath(settings.runtime.output_dir)
        overrides = OmegaConf.to_container(settings.overrides.task)
        assert isinstance(overrides, list)
        if self.sweep:
            self.sweep.start(settings.job.num, overrides, folder)
        try:
            apart = self.sweep is not None and _distributed(config)
            result = _train_apart(overrides, folder) if apart else _train(config, folder)
        except KeyboardInterrupt:
            if self.sweep:
                self.sweep.fail("interrupted", status="interrupted")
            raise
        except Exception as error:
            self.failed = True
            message = message_of(error, folder, bool(config.get("debug")))
            if processes.rank():
                tell_main(message, folder)
                return None
            if not (Path(folder) / "result.json").exists():
                # A full disk, or another training in this folder, has ended the run, and is what is told.
                with suppress(OSError, UserError), held(folder):
                    Result(folder, status="failed", error=told(error)).save()
            say(f"error: {message}")
            if self.sweep:
                self.sweep.fail(told(error))
            return None
        from dlblocks.trainer import is_main_process

        if self.sweep:
            self.sweep.complete(result)
        elif is_main_process():
            show(result.table())
        return result.metrics.get(result.main_metric[0])

    def finish(self, code: int) -> int:
        """Show the table of a sweep; the exit code."""
        if self.sweep:
            self.sweep.show()
            try:
                if self.panels:
                    say(f"sweep picture: {self.sweep.draw(self.panels)}")
            except UserError as error:
                say(f"error: {error}")
                return code or 1
        if code == 0 and self.started == 0 and self.multirun:
            say("error: the sweep expands to no job; a glob pattern in it matches no option.")
            return 1
        return code or int(self.failed)


def _share_config_store() -> None:
    """Hydra copies its whole config store at each look for the options of a group, a hundred times for
    `--help`, though each config is copied again when it is loaded. Sharing the store halves the time."""
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda _: store  # type: ignore[attr-defined]


def _train_apart(overrides: list[str], folder: str) -> Result:
    """One run of a sweep in a process of its own, as a distributed run has to be: Lightning starts its
    other processes by the command line, which must be that of this run, and a process can join a group
    only once."""
    flags = [word for word in sys.argv[1:] if "=" not in word and word not in ("-m", "--multirun")]
    # An experiment may be a sweep by itself; this is one run of it.
    command = [sys.executable, sys.argv[0], *flags, *overrides, "hydra.mode=RUN", f'hydra.run.dir="{folder}"']
    code = subprocess.run(command, check=False).returncode
    if not (Path(folder) / "result.json").exists():
        raise UserError(f"the run ended without a result, with exit code {code}.")
    result = Result.load(folder)
    if result.status != "completed":
        raise UserError(result.error or result.status)
    return result


def _distributed(config: DictConfig) -> bool:
    trainer = config.get("trainer") or {}
    return str(trainer.get("devices", 1)) != "1" or trainer.get("num_nodes", 1) != 1


def _train(config: DictConfig, folder: str) -> Result:
    recipe = plain(config)
    check(recipe)  # before torch is imported, so that a mistake is told at once
    from dlblocks.training import train

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return train(recipe, folder)


@contextmanager
def _errors_come_through() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them, so that they can be explained."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
