"""From a file of instances to a file of predictions."""

from __future__ import annotations

from pathlib import Path

import torch

from dlblocks.errors import UserError
from dlblocks.loading import load
from dlblocks.module import LitModule
from dlblocks.prediction.reading import check_input, reading
from dlblocks.prediction.writing import check_output, writing


def predict(
    run: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    batch_size: int = 1024,
    device: str = "cpu",
) -> int:
    """Predict for all instances of a file, in memory that does not grow with it.

    Args:
        run: a run folder or a checkpoint.
        input: `.csv` or `.npy`; see `reading`.
        output: `.csv`, `.npy` or `.npz`; see `writing`.
        overwrite: replace the output if it exists.
        batch_size: instances at once.
        device: where to compute, such as `cpu`, `cuda` or `cuda:1`.

    Returns:
        How many instances there were.

    Raises:
        UserError: files that can't be read or written, or an instance that the model doesn't take. There is no
            output then.
    """
    source_path, target_path = Path(input), Path(output)
    check_input(source_path)
    check_output(target_path, overwrite)
    if target_path.exists() and target_path.samefile(source_path):
        raise UserError(f"output={output}: is the input.")
    module = _on(load(run), device)
    data_format = module.data_format
    if data_format is None:
        raise UserError(f"run={run}: its checkpoint doesn't say how the inputs were scaled.")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    shown = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    count = 0
    with (
        reading(source_path, data_format) as source,
        writing(target_path, module.task, data_format.classes, source.carried, overwrite) as target,
        Progress(*shown, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("predicting", total=source.length)
        for chunk in source.chunks(batch_size):
            prediction = module.predict(chunk.x).cpu()
            if not prediction.isfinite().all():
                row = int((~prediction.isfinite()).reshape(len(prediction), -1).any(1).nonzero()[0])
                raise UserError(
                    f"input={input}: for instance {count + row} (counted from 0) the model gives no finite"
                    " number; it is far from what it was trained on."
                )
            target.write(prediction, chunk.carried)
            count += len(prediction)
            progress.update(bar, completed=chunk.position)
        if not count:
            raise UserError(f"input={input}: holds no instances.")
    return count


def _on(module: LitModule, device: str) -> LitModule:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
        return module.to(place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"device={device}: not on this machine ({reason}).") from error
