"""Exported files, run without the module that they were made from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dlblocks
from dlblocks import exporting
from dlblocks.errors import MissingPackageError, UserError
from dlblocks.exporting import SUFFIXES, Export, export
from dlblocks.recipe import check
from dlblocks.registry import build

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "trainer.max_epochs=2")
RUNS = {
    "regression": ("data=diabetes",),
    "binary": ("data=breast_cancer", "activation=elu"),
    "binary_softmax": ("data=breast_cancer", "head=softmax", "trainer.precision=64-true"),
    "multiclass": ("data=wine", "activation=maxout", "model.dropout=0.5", "data.scale=minmax"),
    "multilabel": ("data=digit_pairs", "model=convnet", "model.norm=batch", "data.samples=300"),
    "log_rate": ("data=diabetes", "loss=poisson_nll", "data.scale_target=false"),
}
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `export` is not installed",
)
FORMATS = [pytest.param("onnx", marks=needs_onnx), "torch_export"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, overrides in RUNS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        dlblocks.train(dlblocks.compose(*QUICK, *overrides), folders[name])
    return folders


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path]) -> Callable[[str, str], Export]:
    """Each run in each format, exported once."""

    @cache
    def of(name: str, format_: str) -> Export:
        return export(runs[name], format_)

    return of


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets `export` find a module of three inputs with a net of one's own."""

    def use(net: nn.Module) -> Path:
        format_ = {"shape": [3], "shift": [0.0] * 3, "scale": [1.0] * 3, "flat": False}
        module = dlblocks.LitModule(
            task="regression",
            input_shape=(3,),
            outputs=1,
            model=net,
            data_format={**format_, "features": [], "classes": []},
        )
        monkeypatch.setattr(exporting, "load", lambda _: module.eval())
        return tmp_path

    return use


def compute(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if path.suffix == ".pt2":
        found: np.ndarray[Any, Any] = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()
        return found
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (made,) = session.run(None, {"instances": x})
    return np.asarray(made)


def facts(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt2":
        extra = {exporting.FACTS: ""}
        torch.export.load(path, extra_files=extra)
        found: dict[str, Any] = json.loads(extra[exporting.FACTS])
        return found
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", RUNS)
def test_files_predict_from_raw_instances(
    runs: dict[str, Path], exported: Callable[[str, str], Export], name: str, format_: str
) -> None:
    made = exported(name, format_)
    assert made.path == runs[name] / f"model{SUFFIXES[format_]}"
    x = build("dataset", check(dlblocks.compose(*RUNS[name])).dataset).x
    module = dlblocks.load(runs[name])
    expected = module.predict(x).numpy()
    for count in (len(x), 1, 5):
        found = compute(made.path, x[:count].numpy())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5 * abs(expected).max())
    assert made.difference is not None
    assert made.difference <= 1e-4 * abs(expected).max()
    known = facts(made.path)
    assert module.data_format is not None
    assert known["task"] == module.task.name
    given = known["classes"]
    assert tuple(json.loads(given) if isinstance(given, str) else given) == module.data_format.classes


@pytest.mark.parametrize("format_", FORMATS)
def test_logits_are_the_nets_own_output(runs: dict[str, Path], format_: str, tmp_path: Path) -> None:
    name = "multiclass"
    path = tmp_path / f"logits{SUFFIXES[format_]}"
    made = export(runs[name], format_, path, gives="logits")
    assert made.output.startswith("logits (N, ")
    module = dlblocks.load(runs[name])
    assert module.data_format is not None
    x = build("dataset", check(dlblocks.compose(*RUNS[name])).dataset).x
    with torch.no_grad():
        expected = module.net(module.data_format.prepare(x)).numpy()
    np.testing.assert_allclose(compute(path, x.numpy()), expected, rtol=1e-4, atol=1e-4)
    assert expected.min() < 0


def test_narrow_weights_become_float32(tmp_path: Path) -> None:
    dlblocks.train(dlblocks.compose(*QUICK, "data=wine", "trainer.precision=bf16-true"), tmp_path)
    made = export(tmp_path, "torch_export")
    x = np.random.default_rng(0).normal(size=(9, 13)).astype(np.float32)
    expected = dlblocks.load(tmp_path).float().predict(x)
    np.testing.assert_allclose(compute(made.path, x), expected, rtol=1e-4, atol=1e-5)


@needs_onnx
def test_onnx_names_its_input_and_leaves_the_batch_open(exported: Callable[[str, str], Export]) -> None:
    import onnx

    made = exported("multilabel", "onnx")
    graph = onnx.load(made.path).graph
    (given,), (output,) = graph.input, graph.output
    assert (given.name, output.name) == ("instances", "probabilities")
    dims = given.type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, 1, 12, 16]
    assert dims[0].dim_param
    assert made.input == "instances (N, 1, 12, 16)"
    assert made.output == "probabilities (N, 10)"
    assert not list(made.path.parent.glob("*.data"))  # the weights are inside


class _Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] if float(x.sum()) > 0 else x[:, 1:2]


class _Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] + torch.rand_like(x[:, :1])


@pytest.mark.parametrize(
    ("net", "message", "format_"),
    [
        (_Branch(), "the net can't be exported", "torch_export"),
        (_Noise(), "differs from the module's by", "torch_export"),
        pytest.param(_Noise(), "differs from the module's by", "onnx", marks=needs_onnx),
        pytest.param(nn.RReLU(), "can't be exported: .*rrelu", "onnx", marks=needs_onnx),
    ],
    ids=["branch", "noise", "noise-onnx", "rrelu-onnx"],
)
def test_nets_that_a_file_cannot_hold_are_refused(
    untrained: Any, net: nn.Module, message: str, format_: str
) -> None:
    folder = untrained(net)
    with pytest.raises(UserError, match=message):
        export(folder, format_)
    assert not list(folder.iterdir())


def test_nothing_is_replaced_unasked(untrained: Any) -> None:
    folder = untrained(nn.Linear(3, 1))
    path = export(folder, "torch_export").path
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"model\.pt2: exists; overwrite=true"):
        export(folder, "torch_export")
    assert path.read_bytes() == before
    folder = untrained(nn.Sequential(nn.Linear(3, 1), nn.Tanh()))
    export(folder, "torch_export", overwrite=True)
    assert path.read_bytes() != before


def test_wrong_words_and_missing_packages_are_told(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = untrained(nn.Linear(3, 1))
    with pytest.raises(UserError, match="must be one of onnx, torch_export"):
        export(folder, "onx")
    with pytest.raises(UserError, match="predictions, logits"):
        export(folder, "torch_export", gives="classes")
    with pytest.raises(UserError, match=r"format=torch_export makes a \.pt2 file"):
        export(folder, "torch_export", folder / "m.onnx")
    with pytest.raises(UserError, match="no such folder"):
        export(folder, "torch_export", folder / "missing" / "m.pt2")
    monkeypatch.setattr(exporting, "find_spec", lambda _: None)
    with pytest.raises(
        MissingPackageError, match=r"needs onnx and onnxscript: pip install 'dlblocks\[export\]'"
    ):
        export(folder, "onnx")
    assert not list(folder.iterdir())


@needs_onnx
def test_without_a_runtime_the_file_is_not_checked(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = untrained(nn.Linear(3, 1))
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else True)
    made = export(folder, "onnx")
    assert made.difference is None
    assert compute(made.path, np.ones((4, 3), np.float32)).shape == (4, 1)


def test_the_script(runs: dict[str, Path], tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "export.py"), f"run={runs['binary']}"]
    path = tmp_path / "m.pt2"
    done = subprocess.run(
        [*script, "format=torch_export", f"output={path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout.startswith(f"{path}: instances (N, 30) -> probabilities (N)\nchecked: ")
