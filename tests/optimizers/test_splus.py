"""SPlus goes to its averaged weights and back at any time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
ours = pytest.importorskip("dlblocks.optimizers.splus")


def stepped(kind: type[torch.optim.Optimizer], early: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights after three steps, in training and averaged; `early` looks at the average before the first."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = kind(net.parameters(), lr=0.1)
    if early:
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.eval()  # type: ignore[attr-defined]
        assert all(p.equal(b) for p, b in zip(net.parameters(), before, strict=True))
        optimizer.train()  # type: ignore[attr-defined]
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
    trained = [p.detach().clone() for p in net.parameters()]
    optimizer.eval()  # type: ignore[attr-defined]
    averaged = [p.detach().clone() for p in net.parameters()]
    optimizer.train()  # type: ignore[attr-defined]
    assert all(p.equal(t) for p, t in zip(net.parameters(), trained, strict=True))
    return trained, averaged


@pytest.mark.parametrize("early", [False, True])
def test_it_is_the_packages_and_may_be_judged_before_its_first_step(early: bool) -> None:
    ours_now, theirs = stepped(ours.SPlus, early), stepped(pytorch_optimizer.SPlus, early=False)
    for mine, other in zip(ours_now, theirs, strict=True):
        for weight, expected in zip(mine, other, strict=True):
            torch.testing.assert_close(weight, expected)
    assert not ours_now[0][0].equal(ours_now[1][0])
