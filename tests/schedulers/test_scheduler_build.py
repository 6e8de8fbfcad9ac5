from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from dlblocks.errors import UserError
from dlblocks.schedulers import BLOCKS
from dlblocks.schedulers.build import lightning_config, scheduler


@pytest.fixture
def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_lightning_config_by_the_tags(block: Any, sgd: torch.optim.Optimizer) -> None:
    config = lightning_config(block.name, sgd, total_steps=20, monitor="val/acc", mode="max")
    assert type(config.pop("scheduler").optimizer) is torch.optim.SGD
    wanted = {"interval": block.tags["interval"], "frequency": 1}
    assert config == (
        wanted | {"monitor": "val/acc", "strict": True} if block.tags.get("monitor") else wanted
    )


@pytest.mark.parametrize(
    ("name", "interval"),
    {
        "constant": "epoch",
        "step": "epoch",
        "multistep": "epoch",
        "exponential": "epoch",
        "reduce_on_plateau": "epoch",
        "cosine": "step",
        "one_cycle": "step",
        "linear_warmup": "step",
        "warmup_cosine": "step",
    }.items(),
)
def test_interval(name: str, interval: str, sgd: torch.optim.Optimizer) -> None:
    assert lightning_config(name, sgd, 20, "val/loss")["interval"] == interval


def test_plateau_follows_the_metric(sgd: torch.optim.Optimizer) -> None:
    config = lightning_config("reduce_on_plateau", sgd, total_steps=None, monitor="val/acc", mode="max")
    assert config["scheduler"].mode == "max"
    with pytest.raises(UserError, match="mode='best' of the monitored metric must be 'min' or 'max'"):
        scheduler("reduce_on_plateau", sgd, mode="best")
    with pytest.raises(UserError, match="watches a metric; say which one"):
        lightning_config("reduce_on_plateau", sgd)


@pytest.mark.parametrize("total", [None, math.inf, lambda: None])
def test_missing_total(total: Any, sgd: torch.optim.Optimizer) -> None:
    for block in BLOCKS:
        if block.tags["needs_total"]:
            with pytest.raises(
                UserError, match=r"the Trainer gives: set trainer\.max_epochs or trainer\.max_steps"
            ):
                scheduler(block.name, sgd, total_steps=total)
        else:
            scheduler(block.name, sgd, total_steps=total)


def test_total_is_counted_only_when_needed(sgd: torch.optim.Optimizer) -> None:
    def count() -> int:
        asked.append(True)
        return 10

    asked: list[bool] = []
    lightning_config("step", sgd, total_steps=count)
    assert not asked
    lightning_config("cosine", sgd, total_steps=count)
    assert asked


@pytest.mark.parametrize(
    ("spec", "params", "message"),
    [
        (
            "cosine",
            {"total_steps": 0},
            "scheduler=cosine: the run must have a whole number of steps >= 1, got 0",
        ),
        ("cosine", {"min_lr_ratio": 2}, r"scheduler\.min_lr_ratio=2: must be a number in \[0, 1\]"),
        ("linear_warmup", {"warmup": 1.5}, r"scheduler\.warmup=1\.5: must be below 1"),
        ("warmup_cosine", {"warmup": -1}, r"scheduler\.warmup=-1: must be"),
        ("multistep", {"milestones": [0]}, r"scheduler\.milestones=\[0\]"),
        ("reduce_on_plateau", {"threshold_mode": "relative"}, "must be one of rel, abs"),
        ("cosin", {}, "unknown scheduler 'cosin'.*Did you mean 'cosine'"),
    ],
)
def test_mistakes(spec: str, params: dict[str, Any], message: str, sgd: torch.optim.Optimizer) -> None:
    with pytest.raises(UserError, match=message):
        scheduler(spec, sgd, **{"total_steps": 10, **params})


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match="scheduler: give an optimizer, not Linear"):
        scheduler("cosine", torch.nn.Linear(1, 1), total_steps=10)  # type: ignore[arg-type]


def test_cycle_momentum_needs_one() -> None:
    adagrad = torch.optim.Adagrad([torch.zeros(1, requires_grad=True)])
    with pytest.raises(
        UserError, match=r"scheduler\.cycle_momentum=true: Adagrad has neither momentum nor betas"
    ):
        scheduler("one_cycle", adagrad, total_steps=10, cycle_momentum=True)


def test_mapping_class_partial_and_ready(sgd: torch.optim.Optimizer) -> None:
    assert (
        scheduler({"name": "step", "step_size": 3, "gamma": 0.5}, sgd, gamma=0.2).state_dict()["gamma"] == 0.2
    )
    assert isinstance(scheduler(StepLR, sgd, step_size=3), StepLR)
    epoch = lightning_config(functools.partial(LambdaLR, lr_lambda=float), sgd)
    assert (epoch["interval"], "monitor" in epoch) == ("epoch", False)
    step = lightning_config(functools.partial(OneCycleLR, max_lr=0.1, total_steps=9), sgd)
    assert step["interval"] == "step"
    ready = ReduceLROnPlateau(sgd)
    config = lightning_config(ready, sgd, monitor="val/loss")
    assert config["scheduler"] is ready
    assert (config["monitor"], config["strict"]) == ("val/loss", True)


def test_ready_scheduler_of_another_optimizer(sgd: torch.optim.Optimizer) -> None:
    ready = StepLR(sgd, 3)
    with pytest.raises(UserError, match="a ready scheduler takes no parameters, got gamma"):
        scheduler(ready, sgd, gamma=0.1)
    with pytest.raises(UserError, match="belongs to another optimizer, so it would change nothing"):
        scheduler(ready, torch.optim.SGD([torch.zeros(1, requires_grad=True)]))
