"""A trained module as one file for other programs: scaling, net and output activation together."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.errors import MissingPackageError, UserError
from dlblocks.loading import load
from dlblocks.module import LitModule
from dlblocks.results import check_free

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
GIVES = ("predictions", "logits")
INPUT = "instances"
# What the file holds beside the graph: in an .onnx as metadata, in a .pt2 as this extra file.
FACTS = "dlblocks.json"
_NEEDED = {"onnx": ("onnx", "onnxscript"), "torch_export": ()}
# Batches the file is checked on, none of the size it is made with.
_TRACED, _CHECKED = 2, (1, 3, 64)


@dataclass(frozen=True)
class Export:
    """What `export` made.

    Args:
        path: of the file.
        input, output: the names and shapes of what goes in and comes out.
        difference: the largest to the module on random input; None if the file could not be run, since
            onnxruntime is not installed.
    """

    path: Path
    input: str
    output: str
    difference: float | None


def export(
    run: str | Path,
    format: str,
    output: str | Path | None = None,
    *,
    gives: str = "predictions",
    overwrite: bool = False,
) -> Export:
    """Export the module of a run, in evaluation mode, for batches of any size.

    The file takes instances as they are in the data set, float32 `(N, *shape)`, and scales them itself. Weights
    narrower than float32 become float32, which all programs compute in.

    Args:
        run: a run folder or a checkpoint.
        format: `onnx`, or `torch_export` for a `.pt2` that `torch.export.load` reads.
        output: the file; by default `model.onnx` or `model.pt2` in the run folder.
        gives: `predictions` for probabilities or values in the targets' units, shaped as `Task.predict`;
            `logits` for the net's own output.
        overwrite: replace the file if it exists.

    Raises:
        UserError: no such run, a file that is there already, or a net that can't be exported or whose file does
            not compute the same.
        MissingPackageError: a package that the format needs is not installed.
    """
    for key, value, legal in (("format", format, SUFFIXES), ("gives", gives, GIVES)):
        if value not in legal:
            raise UserError(f"{key}={value}: must be one of {', '.join(legal)}.")
    if missing := [name for name in _NEEDED[format] if find_spec(name) is None]:
        raise MissingPackageError(
            f"format={format}: needs {' and '.join(missing)}: pip install 'dlblocks[export]'"
        )
    module = load(run)
    path = _path(run, format, output, overwrite)
    if any(weight.dtype.itemsize < 4 for weight in module.parameters()):
        module.float()
    deployed = _Deployed(module, gives)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with _quiet():
            (_onnx if format == "onnx" else _torch_export)(deployed, partial)
            difference = _check(deployed, partial, format)
        check_free(path, overwrite)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    with torch.no_grad():
        shape = deployed(deployed.sample(_TRACED)).shape[1:]
    return Export(path, _shaped(INPUT, deployed.shape), _shaped(deployed.output, shape), difference)


class _Deployed(nn.Module):
    """What the file computes."""

    shift: Tensor
    scale: Tensor

    def __init__(self, module: LitModule, gives: str) -> None:
        super().__init__()
        if module.data_format is None:
            raise UserError("the checkpoint doesn't say how the inputs were scaled.")
        self.shape, self._flat = module.data_format.shape, module.data_format.flat
        # In a loss there may be buffers that no prediction needs.
        module.loss = nn.Identity()
        self._module, self._gives = module, gives
        self._dtype = next((weight.dtype for weight in module.net.parameters()), torch.float32)
        scaler = module.data_format.scaler
        self.register_buffer("shift", scaler.shift)
        self.register_buffer("scale", scaler.scale)
        regression = module.task.name == "regression"
        self.output = "logits" if gives == "logits" else "values" if regression else "probabilities"
        self.facts = {
            "task": module.task.name,
            "head": module.task.head,
            "gives": self.output,
            "features": list(module.data_format.features),
            "classes": list(module.data_format.classes),
            "dlblocks": version("dlblocks"),
        }
        self.eval()

    def forward(self, instances: Tensor) -> Tensor:
        x = (instances - self.shift) / self.scale
        x = (x.flatten(1) if self._flat else x).to(self._dtype)
        out: Tensor = self._module(x) if self._gives == "logits" else self._module.predict_step(x)
        return out

    def sample(self, count: int) -> Tensor:
        """Random instances, spread as those of the training part."""
        draw = torch.Generator().manual_seed(count)
        return self.shift + self.scale * torch.randn(count, *self.shape, generator=draw)


def _program(deployed: _Deployed) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(
                deployed, (deployed.sample(_TRACED),), dynamic_shapes={"instances": {0: batch}}
            )
    except Exception as error:
        raise UserError(f"the net can't be exported: {_first_line(error)}") from error


def _torch_export(deployed: _Deployed, path: Path) -> None:
    torch.export.save(_program(deployed), path, extra_files={FACTS: json.dumps(deployed.facts)})


def _onnx(deployed: _Deployed, path: Path) -> None:
    import onnx

    program = _program(deployed)
    try:
        made = torch.onnx.export(
            program, input_names=[INPUT], output_names=[deployed.output], dynamo=True, verbose=False
        )
    except Exception as error:
        raise UserError(f"format=onnx: the net can't be exported: {_first_line(error)}") from error
    assert made is not None
    for key, value in deployed.facts.items():
        made.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    made.save(path, external_data=False)
    onnx.checker.check_model(path)


def _check(deployed: _Deployed, path: Path, format: str) -> float | None:
    """Run the file, and give its largest difference to the module.

    Raises:
        UserError: it computes something else.
    """
    try:
        runs = _runner(path, format)
    except Exception as error:
        raise UserError(f"format={format}: the file can't be read back: {_first_line(error)}") from error
    if runs is None:
        return None
    largest = 0.0
    for count in _CHECKED:
        x = deployed.sample(count)
        with torch.no_grad():
            expected = deployed(x)
        try:
            found = runs(x)
        except Exception as error:
            raise UserError(
                f"format={format}: the file can't compute {count} instances: {_first_line(error)}"
            ) from error
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise UserError(
                f"format={format}: for {count} instances the file gives {found.dtype} {tuple(found.shape)}, the"
                f" module {expected.dtype} {tuple(expected.shape)}; it was not kept."
            )
        difference = float((found - expected).abs().max())
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
            raise UserError(
                f"format={format}: the file's output differs from the module's by up to {difference:g}; it was not"
                " kept."
            )
        largest = max(largest, difference)
    return largest


def _runner(path: Path, format: str) -> Callable[[Tensor], Tensor] | None:
    if format == "torch_export":
        program: Any = torch.export.load(path).module()
        return lambda x: program(x).detach()
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of packages that are not here, and of what it is about to change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _path(run: str | Path, format: str, output: str | Path | None, overwrite: bool) -> Path:
    suffix = SUFFIXES[format]
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    path = Path(output) if output is not None else folder / f"model{suffix}"
    if path.suffix != suffix:
        raise UserError(f"output={path}: format={format} makes a {suffix} file.")
    check_free(path, overwrite)
    return path


def _shaped(name: str, shape: tuple[int, ...]) -> str:
    return f"{name} ({', '.join(('N', *map(str, shape)))})"


def _first_line(error: BaseException) -> str:
    """The first line of what caused an error: torch wraps it in advice of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
