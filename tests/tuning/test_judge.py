"""Which logged value is the validation loss."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from dlblocks.errors import UserError
from dlblocks.tuning.judge import Judge
from dlblocks.tuning.trial import RETURNED, RETURNED_LOSS


@pytest.mark.parametrize(
    ("names", "chosen", "told"),
    [
        (["val_recon_loss", "val_loss"], "val_loss", "validation loss"),
        (["val_lossless_ratio", "val/loss"], "val/loss", "validation loss"),
        (["loss", "valid_loss"], "valid_loss", "validation loss"),
        (["val_kl_loss", "loss"], "loss", "validation loss"),
        (["kl_loss", "validation_loss_epoch"], "validation_loss_epoch", "validation loss"),
        (["kl_loss", "valLoss"], "valLoss", "validation loss"),
        (["val_acc", "val_recon_loss"], "val_recon_loss", "val_recon_loss"),
        ([RETURNED, "val_loss"], RETURNED, "validation loss"),
        ([RETURNED_LOSS, "val_loss"], RETURNED_LOSS, "validation loss"),
    ],
)
def test_the_loss_is_told_by_its_name(names: list[str], chosen: str | None, told: str) -> None:
    judge = Judge(None, [])
    assert judge(names) == chosen
    assert judge.told == told


def test_what_is_no_loss_is_not_chosen() -> None:
    assert Judge(None, [])(["val_acc", "val_glossary", "val_lossless"]) is None


@pytest.mark.parametrize(
    ("callbacks", "chosen"),
    [
        ([ModelCheckpoint(monitor="val_recon_loss")], "val_recon_loss"),
        ([ModelCheckpoint(monitor="val_acc", mode="max"), EarlyStopping("val_kl_loss")], "val_kl_loss"),
        ([ModelCheckpoint(monitor="val_recon_loss_epoch/dataloader_idx_0")], "val_recon_loss"),
        ([ModelCheckpoint(monitor="train_loss"), Callback()], "val_loss"),
    ],
    ids=["a checkpoint", "the second", "as logged by epoch", "of training"],
)
def test_what_a_callback_watches_comes_first(callbacks: list[Callback], chosen: str) -> None:
    names = ["val_acc", "val_kl_loss", "val_recon_loss", "val_loss"]
    assert Judge(None, callbacks)(names) == chosen
    assert Judge("val_acc", callbacks)(names) == "val_acc"


def test_a_tensor_that_is_returned_may_be_an_accuracy() -> None:
    watches = [EarlyStopping("val_loss")]
    assert Judge(None, watches)([RETURNED, "val_loss"]) == "val_loss"
    assert Judge(None, watches)([RETURNED_LOSS, "val_loss"]) == RETURNED_LOSS
    assert Judge(None, [EarlyStopping("val_acc", mode="max")])([RETURNED, "val_acc"]) == RETURNED


def test_several_losses_are_not_chosen_from() -> None:
    with pytest.raises(UserError, match=r"several losses \(val_a_loss, val_b_loss\).*monitor='val_a_loss'"):
        Judge(None, [])(["val_a_loss", "val_b_loss"])


def test_a_monitor_that_is_not_logged_is_told() -> None:
    with pytest.raises(
        UserError, match=r"monitor='val_los' is not what validation logs, which is val_loss\."
    ):
        Judge("val_los", [])([RETURNED, "val_loss"])
