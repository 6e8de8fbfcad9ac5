"""The examples in docstrings, run as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dlblocks

MODULES = [
    "dlblocks",
    *(m.name for m in pkgutil.walk_packages(dlblocks.__path__, "dlblocks.")),
    "dlblocks.sweeps",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
