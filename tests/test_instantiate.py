"""Targets of configs."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping

from dlblocks.errors import MissingPackageError, UserError
from dlblocks.instantiate import instantiate

PACKAGE = "lightning.pytorch.callbacks"


def test_builds_what_is_asked_for() -> None:
    built = instantiate(
        {"_target_": f"{PACKAGE}.EarlyStopping", "monitor": "val/loss"}, Callback, "callbacks.stop"
    )
    assert isinstance(built, EarlyStopping)
    assert built.monitor == "val/loss"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "refused, since it is not a Callback"),
        ({"_target_": "builtins.eval"}, "refused, since it is not a Callback"),
        ({"_target_": "EarlyStopping"}, "must be the import path of a class"),
        ({"monitor": "x"}, "must be the import path of a class"),
        ({"_target_": f"{PACKAGE}.EarlyStoping"}, "has no EarlyStoping"),
        ({"_target_": f"{PACKAGE}.EarlyStopping"}, "refuses its arguments"),
        ({"_target_": f"{PACKAGE}.EarlyStopping", "monitor": "x", "patiense": 3}, "patiense"),
        (
            {"_target_": f"{PACKAGE}.EarlyStopping", "monitor": {"_target_": "os.getcwd"}},
            "nested _target_=os.getcwd",
        ),
        ({"_target_": f"{PACKAGE}.EarlyStopping", "monitor": [{"_target_": "os.getcwd"}]}, "nested _target_"),
        (
            {"_target_": f"{PACKAGE}.EarlyStopping", "monitor": {"_target_": "dlblocks.results.os.getcwd"}},
            "dlblocks.results is not a package|dlblocks.results.os",
        ),
        (
            {"_target_": f"{PACKAGE}.EarlyStopping", "monitor": {"_target_": "dlblocks.results.version"}},
            "nested _target_=dlblocks.results.version",
        ),
        (
            {"_target_": f"{PACKAGE}.EarlyStopping", "monitor": {"_target_": "dlblocks.results.Path"}},
            "nested _target_=dlblocks.results.Path",
        ),
        (
            {"_target_": f"{PACKAGE}.EarlyStopping", "monitor": "${oc.create:{_target_: os.getcwd}}"},
            "no interpolation left",
        ),
    ],
)
def test_refusals_name_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        instantiate(config, Callback, "callbacks.stop")
    assert "callbacks.stop" in str(caught.value)


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(MissingPackageError, match="no_such_package"):
        instantiate({"_target_": "no_such_package.Thing"}, Callback, "callbacks.stop")
