from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from dlblocks.errors import UserError
from dlblocks.optimizers import BLOCKS
from dlblocks.optimizers.build import optimizer
from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS
from dlblocks.records import Block


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if not {"sparse", "wraps"} & set(block.tags)], ids=lambda b: b.name
)
def test_by_name_with_its_defaults(block: Block, net: nn.Module) -> None:
    opt = optimizer(block.name, net)
    assert type(opt) is block.load()
    # This one divides the rate by the factor that it multiplies the gradients with.
    factor = 3 if block.name == "grokfast_adamw" else 1
    assert opt.param_groups[0]["lr"] == pytest.approx(block.defaults()["lr"] / factor)
    assert sum(len(group["params"]) for group in opt.param_groups) == 4


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.name)
def test_records_are_whole(block: Block) -> None:
    has_decay = any(param.name == "weight_decay" for param in block.params)
    assert ("kind_of_decay" in block.tags) == has_decay == (DECAY_NORM_AND_BIAS in block.params)
    with_closure = {
        "lbfgs",
        "polyak_sgd",
        "momo",
        "momo_adam",
        "sam",
        "gsam",
        "wsam",
        "looksam",
        "friendly_sam",
    }
    assert block.tags["closure"] == (block.name in with_closure)
    assert isinstance(block.tags["elementwise"], bool)
    assert isinstance(block.tags["linear_in_lr"], bool)
    assert block.params[0].name == "lr" or "lr" in {param.name for param in block.params}
    assert block.summary
    assert block.source
    assert block.formula or block.package


def test_alias_and_mapping(net: nn.Module) -> None:
    opt = optimizer({"name": "gd", "lr": 0.5, "momentum": 0.1}, net, momentum=0.9)
    assert isinstance(opt, torch.optim.SGD)
    assert (opt.defaults["lr"], opt.defaults["momentum"]) == (0.5, 0.9)


@pytest.mark.parametrize("spec", [torch.optim.AdamW, functools.partial(torch.optim.SGD, weight_decay=0.01)])
def test_class_and_partial_get_the_groups(spec: Any, net: nn.Module) -> None:
    opt = optimizer(spec, net, lr=0.3)
    assert [(len(group["params"]), group["weight_decay"]) for group in opt.param_groups] == [
        (2, 0.01),
        (2, 0.0),
    ]
    assert opt.defaults["lr"] == 0.3
    (group,) = optimizer(spec, net, weight_decay=0.0).param_groups
    assert len(group["params"]) == 4


def test_ready_optimizer(net: nn.Module) -> None:
    ready = torch.optim.SGD(net.parameters())
    assert optimizer(ready, net) is ready
    with pytest.raises(UserError, match="a ready optimizer takes no parameters, got lr"):
        optimizer(ready, net, lr=0.1)


def test_params_and_groups_stay_as_they_are(net: nn.Module) -> None:
    params = list(net.parameters())
    (group,) = optimizer("adamw", net.parameters(), weight_decay=0.1).param_groups
    assert group["params"] == params
    assert group["weight_decay"] == 0.1

    def lazily() -> Iterator[nn.Parameter]:
        yield from params[2:]

    groups: list[dict[str, Any]] = [{"params": params[:2], "lr": 0.3}, {"params": lazily()}]
    opt = optimizer("adamw", groups, lr=0.1)
    assert [(group["params"], group["lr"]) for group in opt.param_groups] == [
        (params[:2], 0.3),
        (params[2:], 0.1),
    ]
    (named,) = optimizer("sgd", net.named_parameters(), momentum=0.9).param_groups
    assert named["params"] == params
    (single,) = optimizer("sgd", [{"params": params[0]}]).param_groups
    assert single["params"] == params[:1]


@pytest.mark.parametrize(
    ("spec", "params", "message"),
    [
        ("sgd", {"lr": -1}, r"optimizer\.lr=-1: must be a number in \(0, inf\)"),
        ("sgd", {"lr": 0}, r"optimizer\.lr=0: must be"),
        ("sgd", {"lr": float("inf")}, r"optimizer\.lr=inf: must be"),
        ("adam", {"betas": [0.9]}, r"optimizer\.betas=\[0\.9\]: must be a list of 2 numbers in \[0, 1\)"),
        ("adam", {"betas": [0.9, 1.0]}, r"optimizer\.betas"),
        ("adam", {"momentum": 0.9}, "'adam' has no parameter 'momentum'"),
        ("sgd", {"nesterov": True}, r"nesterov=true: needs momentum > 0.*Try optimizer\.momentum=0\.9"),
        ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening=0.1"),
        ("lbfgs", {"line_search_fn": "strongwolfe"}, "must be one of strong_wolfe, or null.*Did you mean"),
        ("rmsprop", {"implementation": "fused"}, "torch has no fused RMSprop for torch.float32 on cpu"),
        ("addam", {}, "unknown optimizer 'addam'.*Did you mean 'adam'"),
        (3, {}, "optimizer=3: must be a name or a mapping"),
    ],
)
def test_mistakes(spec: Any, params: dict[str, Any], message: str, net: nn.Module) -> None:
    with pytest.raises(UserError, match=message):
        optimizer(spec, net, **params)


def test_mistakes_in_params(net: nn.Module) -> None:
    with pytest.raises(UserError, match="optimizer: optimizer got an empty parameter list"):
        optimizer("sgd", [])
    with pytest.raises(UserError, match="not one tensor"):
        optimizer("sgd", torch.ones(2, requires_grad=True))
    for wrong in (None, "net", {"params": []}):
        with pytest.raises(
            UserError, match="optimizer: give a model, or a list of parameters or groups, not "
        ):
            optimizer("sgd", wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"sub\.opt: LBFGS"):
        optimizer("lbfgs", [{"params": [p]} for p in net.parameters()], where="sub.opt")


def test_auto_implementation(net: nn.Module) -> None:
    assert optimizer("adam", net).defaults["fused"] is True
    assert optimizer("sgd", net, momentum=0.9).defaults["fused"] is True
    assert optimizer("sgd", net).defaults["foreach"] is True
    assert optimizer("rmsprop", net).defaults["foreach"] is True
    complex_params = [torch.zeros(2, dtype=torch.complex64, requires_grad=True)]
    assert not optimizer("adam", complex_params).defaults["fused"]
    meta = optimizer("rmsprop", nn.Linear(2, 2, device="meta"))
    assert meta.defaults["foreach"] is None


def test_sparse_gradients_train() -> None:
    net = nn.Embedding(4, 2, sparse=True)
    opt = optimizer("sgd", net, momentum=0.9)
    before = net.weight.detach().clone()
    net(torch.tensor([1, 3])).sum().backward()
    opt.step()
    torch.testing.assert_close(net.weight[[1, 3]], before[[1, 3]] - 0.01)
    assert torch.equal(net.weight[[0, 2]], before[[0, 2]])


def test_lightning_clips_the_gradients_of_fused_in_mixed_precision(net: nn.Module) -> None:
    opt = optimizer("adamw", net, implementation="fused")
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(opt, clip_val=0.5)
    norm = torch.cat([parameter.grad.flatten() for parameter in net.parameters()]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.5))
