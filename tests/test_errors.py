"""The errors."""

from __future__ import annotations

import pytest

from dlblocks.errors import (
    DuplicateBlockError,
    MissingPackageError,
    UnknownNameError,
    UserError,
    did_you_mean,
    nearest,
    unknown,
)


def test_every_error_is_a_users_error() -> None:
    for error in (UnknownNameError, DuplicateBlockError, MissingPackageError):
        assert issubclass(error, UserError)
    assert issubclass(UserError, ValueError)
    assert issubclass(MissingPackageError, ImportError)


def test_the_nearest_names_come_best_first() -> None:
    assert nearest("reluu", ["elu", "tanh", "relu"]) == ["relu", "elu"]
    assert nearest("Tanh", ["tanh", "TANH_shrink"])[0] == "tanh"
    assert nearest("reluu", ["relu", "prelu", "relu6", "celu"], count=1) == ["relu"]
    assert nearest("xyz", ["relu"]) == []
    assert nearest("relu", []) == []


def test_the_spelling_of_the_legal_name_is_kept() -> None:
    assert nearest("adamw", ["AdamW"]) == ["AdamW"]


@pytest.mark.parametrize(
    ("name", "legal", "hint"),
    [
        ("eluu", ["elu"], " Did you mean 'elu'?"),
        ("reluu", ["elu", "relu"], " Did you mean 'relu' or 'elu'?"),
        ("xyz", ["elu"], ""),
    ],
)
def test_the_hint(name: str, legal: list[str], hint: str) -> None:
    assert did_you_mean(name, legal) == hint


def test_an_unknown_name_is_told_with_place_nearest_and_legal() -> None:
    error = unknown("loss", "hubber", {"mse", "huber"}, where="recipe.loss")
    assert isinstance(error, UnknownNameError)
    assert str(error) == "recipe.loss: unknown loss 'hubber'. Did you mean 'huber'? Legal: huber, mse."
    assert str(unknown("loss", "x", ())) == "unknown loss 'x'. Legal: (none)."


def test_letters_in_another_order_come_first() -> None:
    assert nearest("adma", ["adamax", "adan", "adam", "aida"])[0] == "adam"
    assert nearest("MSE", ["mes", "mse"])[:2] == ["mes", "mse"]
