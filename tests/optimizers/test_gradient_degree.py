"""By what power the steps of an optimizer follow the scale of the gradients, which its entry says and others rely on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dlblocks
from dlblocks.registry import REGISTRY

BLOCKS = {name: REGISTRY.get("optimizer", name) for name in REGISTRY.names("optimizer")}
KNOWN = {
    name: block.tags["gradient_degree"] for name, block in BLOCKS.items() if "gradient_degree" in block.tags
}
# After a start in which it takes SGD's steps.
STEPS = {"radam": 60}
# AdaBound turns into SGD, where the bounds of its rates meet: far below them it is Adam.
SCALE = {"adabound": 1e-4}


def moved(name: str, factor: float) -> Tensor:
    """The last of some steps on gradients times a factor, seen without decay and with a small eps."""
    given = {param.name for param in BLOCKS[name].params}
    extra = {key: value for key, value in {"weight_decay": 0.0, "eps": 1e-12}.items() if key in given}
    parameter = nn.Parameter(torch.full((5, 4), 0.5, dtype=torch.float64))
    optimizer = dlblocks.optimizer({"name": name, "lr": 1e-4, **extra}, [parameter])
    if hasattr(optimizer, "train"):
        optimizer.train()
    draws, before = torch.Generator().manual_seed(1), parameter.detach().clone()
    for _ in range(STEPS.get(name, 8)):
        torch.manual_seed(3)
        before.copy_(parameter.detach())
        gradient = factor * (1.0 + torch.randn(5, 4, generator=draws, dtype=torch.float64))
        parameter.grad = gradient.to_sparse() if BLOCKS[name].tags.get("sparse") else gradient
        optimizer.step()
    return parameter.detach() - before


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_steps_follow_the_gradients_scale_as_the_entry_says(name: str) -> None:
    scale = SCALE.get(name, 1e3)
    small, large = moved(name, scale), moved(name, 10 * scale)
    assert small.norm() > 0
    torch.testing.assert_close(
        large, small * 10 ** KNOWN[name], rtol=0.05, atol=0.02 * float(small.abs().max())
    )


def test_some_have_no_such_power() -> None:
    assert not {"padam", "kate", "sgld", "lamb", "rprop"} & set(KNOWN)
