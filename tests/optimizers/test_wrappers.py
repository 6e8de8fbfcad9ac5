"""Lookahead and SAM against their papers' updates, around every kind of optimizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.optimizers.build import optimizer
from dlblocks.optimizers.own import BLOCKS
from dlblocks.registry import spell_out

CURVATURE = torch.tensor([[2.0, 0.3], [0.3, 0.7]], dtype=torch.float64)
START = [1.5, -0.8]
NAMES = [block.name for block in BLOCKS if block.tags.get("wraps")]


def gradient(theta: np.ndarray) -> np.ndarray:
    return CURVATURE.numpy() @ theta


def run(opt: torch.optim.Optimizer, theta: Tensor, steps: int) -> Iterator[np.ndarray]:
    for _ in range(steps):
        opt.step(closure_of(opt, theta))
        yield theta.detach().numpy().copy()


def closure_of(opt: torch.optim.Optimizer, theta: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = theta @ CURVATURE @ theta / 2
        loss.backward()
        return loss.detach()

    return closure


def start() -> Tensor:
    return torch.tensor(START, dtype=torch.float64, requires_grad=True)


def test_lookahead_is_the_papers() -> None:
    theta = start()
    opt = optimizer("lookahead", [theta], base="sgd", lr=0.1, k=3, alpha=0.4)
    fast = slow = np.array(START)
    for t, got in enumerate(run(opt, theta, 8), 1):
        fast = fast - 0.1 * gradient(fast)
        if t % 3 == 0:
            fast = slow = slow + 0.4 * (fast - slow)
        np.testing.assert_allclose(got, fast, rtol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_papers(adaptive: bool) -> None:
    theta = start()
    opt = optimizer("sam", [theta], base={"name": "sgd", "momentum": 0.5}, lr=0.1, rho=0.3, adaptive=adaptive)
    wanted, b = np.array(START), np.zeros(2)
    for got in run(opt, theta, 6):
        g = gradient(wanted)
        e = wanted**2 * g / np.linalg.norm(abs(wanted) * g) if adaptive else g / np.linalg.norm(g)
        b = 0.5 * b + gradient(wanted + 0.3 * e)
        wanted = wanted - 0.1 * b
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_orthograd_is_the_papers_and_the_packages() -> None:
    from pytorch_optimizer import OrthoGrad

    theta, other = start(), start()
    opt = optimizer("orthograd", [theta], base="sgd", lr=0.1)
    theirs = OrthoGrad(torch.optim.SGD([other], lr=0.1))
    wanted = np.array(START)
    for got in run(opt, theta, 6):
        g = gradient(wanted)
        rest = g - wanted * (wanted @ g) / (wanted @ wanted)
        wanted = wanted - 0.1 * rest / np.linalg.norm(rest) * np.linalg.norm(g)
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
        closure_of(theirs, other)()
        theirs.step()
        np.testing.assert_allclose(other.detach(), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", ["adamw", "lion", {"name": "sgd", "momentum": 0.9}, "lamb"])
def test_resumes_exactly_from_a_state_loaded_without_running_code(name: str, base: Any) -> None:
    theta = start()
    opt = optimizer(name, [theta], base=base, lr=0.05)
    list(run(opt, theta, 7))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    other = theta.detach().clone().requires_grad_()
    resumed = optimizer(name, [other], base=base, lr=0.05)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for got, wanted in zip(run(resumed, other, 6), run(opt, theta, 6), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_rates_are_the_bases(name: str) -> None:
    net = nn.Linear(2, 1)
    opt = optimizer(name, net, base={"name": "adamw", "weight_decay": 0.1}, lr=0.05)
    assert [group["weight_decay"] for group in opt.param_groups] == [0.1, 0.0]
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    net(torch.ones(1, 2)).sum().backward()
    opt.step(lambda: torch.tensor(0.0))
    scheduler.step()
    assert opt.base.param_groups[0]["lr"] == 0.025
    assert optimizer(name, net).param_groups[0]["lr"] == spell_out("optimizer", "adamw")["lr"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("lbfgs", r"optimizer\.base=lbfgs: .* goes around optimisers that take one gradient a step"),
        ("sam", r"optimizer\.base=sam"),
        ("adma", r"optimizer\.base: unknown optimizer 'adma'. Did you mean 'adam'"),
        ({"name": "sgd", "momentum": 2}, r"optimizer\.base\.momentum=2"),
    ],
)
def test_one_message(name: str, base: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimizer(name, [start()], base=base)


def test_sam_needs_the_closure() -> None:
    theta = start()
    theta.grad = torch.ones_like(theta)
    with pytest.raises(UserError, match="needs a closure"):
        optimizer("sam", [theta]).step()


def test_parameters_without_gradient_stay() -> None:
    theta, idle = start(), torch.ones(3, requires_grad=True)
    opt = optimizer("lookahead", [theta, idle], k=1)
    list(run(opt, theta, 2))
    assert torch.equal(idle, torch.ones(3))
    idle.grad = torch.ones(3)
    list(run(opt, theta, 1))
    idle.grad = torch.ones(3)
    opt.step()
    assert not torch.equal(idle, torch.ones(3))
