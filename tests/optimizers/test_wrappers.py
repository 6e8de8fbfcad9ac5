"""Wrappers against their papers' updates, around every kind of optimizer."""

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
from dlblocks.optimizers.own_wrappers import BLOCKS
from dlblocks.records import Param
from dlblocks.registry import spell_out

CURVATURE = torch.tensor([[2.0, 0.3], [0.3, 0.7]], dtype=torch.float64)
START = [1.5, -0.8]
NAMES = [block.name for block in BLOCKS]


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


def spelled(name: str) -> tuple[Param, ...]:
    return next(block.params for block in BLOCKS if block.name == name)


def test_lookahead_is_the_papers() -> None:
    theta = start()
    opt = optimizer("lookahead", [theta], base="sgd", lr=0.1, k=3, alpha=0.4)
    fast = slow = np.array(START)
    for t, got in enumerate(run(opt, theta, 8), 1):
        fast = fast - 0.1 * gradient(fast)
        if t % 3 == 0:
            fast = slow = slow + 0.4 * (fast - slow)
        np.testing.assert_allclose(got, fast, rtol=1e-12)


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


def test_cautious_is_the_papers() -> None:
    """Around momentum, which disagrees with the gradient where the path turns; l2 decay is a part of the step."""
    theta = start()
    base = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}
    opt = optimizer("cautious", [theta], base=base, lr=0.3)
    wanted, b, agreed = np.array(START), np.zeros(2), set()
    for got in run(opt, theta, 12):
        g = gradient(wanted)
        b = 0.9 * b + g + 0.1 * wanted
        agree = b * g > 0
        agreed.add(agree.sum())
        wanted = wanted - 0.3 * np.where(agree, b, 0) / max(agree.mean(), 1e-3)
        np.testing.assert_allclose(got, wanted, rtol=1e-10)
    assert agreed == {0, 1, 2}


def test_trac_is_the_papers_and_the_packages() -> None:
    from pytorch_optimizer import TRAC
    from scipy.special import erfi

    theta, other = start(), start()
    base = {"name": "sgd", "momentum": 0.9}
    opt = optimizer("trac", [theta], base=base, lr=0.1, betas=[0.9, 0.999])
    theirs = TRAC(torch.optim.SGD([other], lr=0.1, momentum=0.9), betas=(0.9, 0.999))
    betas, v, c = np.array([0.9, 0.999]), np.zeros(2), np.full(2, 1e-8)
    wanted, scale, b = np.array(START), 0.0, np.zeros(2)
    for t, got in enumerate(run(opt, theta, 150)):
        g = gradient(wanted)
        d = (wanted - START) / (scale + 1e-8)
        h = g @ d
        b = 0.9 * b + g
        v, c = betas**2 * v + h**2, betas * c - h
        scale = 1e-8 / erfi(2**-0.5) * erfi(c / (np.sqrt(2 * v) + 1e-8)).sum()
        wanted = np.array(START) + max(scale, 0) * (d - 0.1 * b)
        np.testing.assert_allclose(got, wanted, rtol=1e-7, err_msg=f"step {t}")
        closure_of(theirs, other)()
        theirs.step()
        # Its error function is in float32.
        np.testing.assert_allclose(other.detach().numpy() - START, wanted - START, rtol=1e-3)
    assert np.linalg.norm(gradient(wanted)) < 0.2 * np.linalg.norm(gradient(np.array(START)))


# The share of theta that each takes beside its step, at lr 0.05 and weight_decay 0.2.
DECAYS: list[tuple[dict[str, Any], float]] = [
    ({"name": "adamw"}, 0.01),
    ({"name": "nadam", "decoupled_weight_decay": True}, 0.01),
    ({"name": "adamaxw"}, 0.01),
    ({"name": "adopt"}, 0.01),
    ({"name": "lion"}, 0.01),
    ({"name": "lion", "fixed_decay": True}, 0.2),
    ({"name": "nadam"}, 0.0),
    ({"name": "lion", "weight_decouple": False}, 0.0),
]


@pytest.mark.parametrize(("base", "share"), DECAYS, ids=str)
def test_cautious_leaves_decoupled_decay_as_it_is(base: dict[str, Any], share: float) -> None:
    """Where no step agrees with the gradient, decoupled decay is all that is left."""
    theta = start()
    opt = optimizer("cautious", [theta], base={**base, "weight_decay": 0.2}, lr=0.05)
    for _ in range(30):
        theta.grad = torch.ones_like(theta)
        opt.step()
    before = theta.detach().clone()
    theta.grad = torch.full_like(theta, -1e-3)
    opt.step()
    np.testing.assert_allclose(theta.detach(), before * (1 - share), rtol=1e-12)


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", ["rmsprop", "adadelta"])
def test_a_bases_options_of_the_same_name_are_its_own(name: str, base: str) -> None:
    """rmsprop has an alpha, adadelta a rho: what the wrapper is told has an effect, and on the wrapper alone."""
    params = {p.name: p for p in spelled(name) if p.name in ("alpha", "rho")}
    for key, param in params.items():
        ends = []
        for value in (param.default, param.default / 2):
            theta = start()
            opt = optimizer(name, [theta], base=base, lr=0.05, **{key: value})
            list(run(opt, theta, 6))
            ends.append(theta.detach().numpy())
            own = spell_out("optimizer", base)
            assert all(opt.param_groups[0][k] == own[k] for k in ("alpha", "rho") if k in own)
        assert not np.allclose(*ends, rtol=1e-9), key


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
