"""Every entry can be built, and its values are those of its source."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import datasets

from dlblocks.data import BLOCKS
from dlblocks.data.table import Table, check
from dlblocks.records import Block
from dlblocks.registry import build


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_entry(block: Block) -> None:
    signature = inspect.signature(block.load())
    assert {p.name: p.default for p in signature.parameters.values()} == block.defaults()
    table = build("dataset", block.name)
    check(table)
    assert (table.name, table.task) == (block.name, block.tags["task"])
    assert (len(table.shape) == 3) == block.tags.get("images", False)
    assert table.x.dtype == torch.float32
    whole = table.task in ("binary", "multiclass")
    assert table.y.dtype == (torch.int64 if whole else torch.float32)
    assert table.y.ndim == (1 if whole else 2)


def test_catalogue_imports_no_torch() -> None:
    code = "import sys, dlblocks.data; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("digits", datasets.load_digits),
        ("breast_cancer", datasets.load_breast_cancer),
        ("wine", datasets.load_wine),
        ("diabetes", lambda: datasets.load_diabetes(scaled=False)),
    ],
)
def test_values_are_scikit_learns(name: str, load: object) -> None:
    table: Table = build("dataset", name)
    source = load()  # type: ignore[operator]
    np.testing.assert_array_equal(table.x.flatten(1).numpy(), source.data.astype(np.float32))
    np.testing.assert_array_equal(table.y.flatten().numpy(), source.target)
    assert table.features == tuple(source.feature_names)
    if table.task != "regression":
        assert table.classes == tuple(str(c) for c in source.target_names)
