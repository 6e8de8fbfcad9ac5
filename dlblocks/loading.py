"""From a run to its trained module, ready to predict. No file can run code on the way."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dlblocks.checkpoints import read
from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.recipe import BLOCKS
from dlblocks.results import Result


def load(run: str | Path | Result) -> LitModule:
    """The trained module of a run, with the weights of its best checkpoint, in evaluation mode.

    `module.predict(x)` takes instances as they are in the data set; `module.data_format` has the names of
    features and classes. Blocks are built by name through the registry.

    Args:
        run: a run folder, its `Result`, or the path of a checkpoint.

    Raises:
        UserError: no such run, one that did not complete or kept no checkpoint, or a damaged file.
    """
    path = Path(run) if not isinstance(run, Result) and Path(run).is_file() else checkpoint_of(run)
    return _module(read_checkpoint(path), f"checkpoint {path}")


def load_result(run: str | Path) -> Result:
    """The result of a completed run.

    Raises:
        UserError: no such run, a damaged `result.json`, or a run that did not complete.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"run={run}: no such folder.")
    try:
        result = Result.load(folder)
    except FileNotFoundError as error:
        raise UserError(
            f"run={run}: has no result.json; it is not a run folder, or the run is not at its end."
        ) from error
    _check_completed(result, run)
    return result


def checkpoint_of(run: str | Path | Result) -> Path:
    """The best checkpoint of a run, also where the run folder has been moved.

    Raises:
        UserError: the run did not complete, kept no checkpoint, or the file is gone.
    """
    if isinstance(run, Result):
        result, folder = run, Path(run.folder)
        _check_completed(result, folder)
    else:
        result, folder = load_result(run), Path(run)
    if result.best_checkpoint is None:
        raise UserError(
            f"run={folder}: the run kept no checkpoint; it was trained without a checkpoint callback."
        )
    kept = Path(result.best_checkpoint)
    parts = [part for part in kept.parts if part not in ("..", kept.anchor)]
    inside = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    for path in (*inside, kept):
        if path.is_file():
            return path
    raise UserError(f"run={folder}: its checkpoint {kept} is gone.")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values only.

    Raises:
        UserError: no such file, a damaged one, one with anything else in it, or no Lightning checkpoint.
    """
    content = read(path, "checkpoint ")
    if not isinstance(content.get("hyper_parameters"), Mapping):
        raise UserError(f"checkpoint {path}: not of a LitModule, since it has no hyper_parameters.")
    return content


def _module(content: Mapping[str, Any], where: str) -> LitModule:
    given, state = content["hyper_parameters"], content["state_dict"]
    legal = set(inspect.signature(LitModule).parameters)
    if unknown := sorted(str(key) for key in set(given) - legal):
        raise UserError(f"{where}: LitModule has no hyper-parameter {', '.join(unknown)}.")
    if ready := [key for key in BLOCKS if key not in given]:
        raise UserError(
            f"{where}: {', '.join(ready)} was given as a ready object, which no checkpoint holds."
            f" dlblocks.LitModule.load_from_checkpoint(path, {ready[0]}=...) takes it again."
        )
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f"{where}: damaged; its state_dict holds something else than named tensors.")
    try:
        with _no_larger_than(state):
            module = LitModule(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # values of any kind may stand in a damaged file
        raise UserError(f"{where}: no module can be built from its hyper-parameters ({error}).") from error
    # Weights stay in the precision that they were trained in.
    precisions = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(precisions) == 1:
        module.to(precisions.pop())
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{where}: its weights don't fit its hyper-parameters ({error}).") from error
    return module.eval()


@contextmanager
def _no_larger_than(state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Refuse to build a net of far more numbers than a checkpoint holds. A parameter is registered before it is filled,
    so that its memory is only claimed by then."""
    held = sum(value.untyped_storage().nbytes() // value.element_size() for value in state.values())
    registered = 0

    def count(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:  # noqa: ARG001
        nonlocal registered
        registered += 0 if parameter is None else parameter.numel()
        # Some are registered more than once while a net is built, or never saved.
        if registered > 10 * held + 10**6:
            raise UserError(f"its hyper-parameters ask for over {registered} numbers, and it holds {held}.")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_completed(result: Result, run: str | Path) -> None:
    if result.status != "completed":
        raise UserError(
            f"run={run}: {result.status} ({result.error or 'no result'}). A checkpoint that it left can be loaded"
            " by its own path."
        )
