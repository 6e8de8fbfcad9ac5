"""The check of a recipe, before anything is built."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import dlblocks
from dlblocks.errors import UserError
from dlblocks.recipe import DATA, KEYS, LR_FINDER, RUN, TRAINER, check

WHOLE = dlblocks.compose()


def changed(path: str, value: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(WHOLE)
    *parents, last = path.split(".")
    node = recipe
    for part in parents:
        node = node[part]
    node[last] = value
    return recipe


def test_the_default_recipe_is_legal() -> None:
    recipe = check(WHOLE)
    assert recipe.dataset["name"] == "digits"
    assert recipe.blocks["activation"] == {"name": "relu"}
    assert recipe.blocks["loss"] == recipe.blocks["bias_init"] == "auto"


def test_defaults_in_yaml_and_in_the_schema_are_the_same() -> None:
    assert {p.name: p.default for p in RUN if p.name not in ("name",)} == {
        p.name: WHOLE[p.name] for p in RUN if p.name not in ("name",)
    }
    assert {p.name: p.default for p in DATA} == {p.name: WHOLE["data"][p.name] for p in DATA}
    assert {p.name: p.default for p in TRAINER} == {p.name: WHOLE["trainer"][p.name] for p in TRAINER}
    assert {p.name: p.default for p in LR_FINDER} == WHOLE["lr_finder"]
    assert set(WHOLE) == set(KEYS)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("activaton", "elu", "activaton: unknown key. Did you mean 'activation'"),
        ("activation", "eluu", "Did you mean 'elu'"),
        ("activation", {"name": "elu", "alhpa": 1}, "activation.alhpa: activation 'elu' has no parameter"),
        ("activation", {"name": "elu", "alpha": "big"}, "activation.alpha=big: must be a number"),
        ("activation", 3, "activation=3: must be a name or a mapping"),
        ("loss", {"name": "auto", "delta": 1}, "loss.delta: loss=auto has no parameters"),
        ("optimizer.lr", -1, r"optimizer.lr=-1: must be a number in \(0, inf\)"),
        ("optimizer.lr", 0, r"optimizer.lr=0: must be a number in \(0, inf\)"),
        ("data.batch_size", 0, "data.batch_size=0: must be a whole number of at least 1"),
        ("data.batch_size", 2.5, "data.batch_size=2.5"),
        ("data.batch_sise", 2, "Did you mean 'batch_size'"),
        ("data.name", "digit", "Did you mean 'digits'"),
        ("data.scale", "standart", "Did you mean 'standard'"),
        ("data.val_fraction", 0.9, "leave nothing to train on"),
        ("model.dropout", 1.5, r"model.dropout=1.5: must be a number in \[0, 1\)"),
        ("regime", "batch", "regime=batch: must be one of gd, sgd, minibatch"),
        ("regime", "gd", "regime=gd takes the whole training set"),
        ("regime", "sgd", "regime=sgd takes one instance"),
        ("seed", "abc", "seed=abc: must be a whole number"),
        ("seed", -1, "seed=-1"),
        ("task", "multiclas", "Did you mean 'multiclass'"),
        ("trainer.max_epochs", 0, "would train nothing"),
        ("trainer.max_epochs", -1, "would have no end"),
        ("trainer.max_epochs", "ten", "trainer.max_epochs=ten: must be a whole number"),
        ("trainer.precision", "16", "trainer.precision=16: must be one of"),
        ("trainer.gradient_clip_val", -1, "trainer.gradient_clip_val=-1"),
        ("trainer", "gpu", "trainer=gpu: must be a mapping"),
        ("debug", "yes", "debug=yes: must be true or false"),
    ],
)
def test_one_message_with_the_key_and_what_would_be_right(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(changed(path, value))


@pytest.mark.parametrize("key", ["optimizer.lr", "data.batch_size"])
def test_nothing_is_found_for_a_divided_net(key: str) -> None:
    group, name = key.split(".")
    divided = changed("trainer.strategy", "fsdp2")
    divided[group] = {**divided[group], name: "auto"}
    with pytest.raises(UserError, match=f"{key}=auto: .*strategy=fsdp2 divides.* Find it with trainer=ddp"):
        check(divided)


def test_regimes_set_the_batch_size() -> None:
    assert check(dlblocks.compose("regime=gd")).data["batch_size"] == "full"
    assert check(dlblocks.compose("regime=sgd")).data["batch_size"] == 1
    assert check(dlblocks.compose("data.batch_size=64")).data["batch_size"] == 64


def test_a_partial_recipe_names_what_it_lacks() -> None:
    with pytest.raises(UserError, match=r"lacks .*optimizer.*dlblocks.compose"):
        check({"activation": "elu"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data=diabetes", "sweep.panels=[{x:epoch,y:val/accuracy}]"],
            "val/accuracy is no metric of the task regression",
        ),
        (["sweep.panels=[{x:epoch,y:val/acuracy}]"], "Did you mean 'val/accuracy'"),
        (
            ["sweep.panels=[{x:init,y:activation,color:val/rmse}]"],
            "val/rmse is no metric of the task multiclass",
        ),
        (["data=breast_cancer", "head=softmax", "sweep.panels=[{x:epoch,y:val/auroc}]"], "binary_softmax"),
    ],
    ids=str,
)
def test_panels_of_a_metric_that_the_task_does_not_have(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"sweep.panels: .*{message}"):
        check(dlblocks.compose(*overrides))


def test_panels_of_metrics_that_the_task_has() -> None:
    panels = "[{x:epoch,y:val/metric},{x:seed,y:test/auroc},{x:seed,y:seconds},{x:a,y:b,color:diagnosis}]"
    check(dlblocks.compose("data=breast_cancer", f"sweep.panels={panels}"))
