"""SAM and its relatives against their papers' updates in numpy, and against pytorch-optimizer's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlblocks.errors import UserError
from dlblocks.optimizers.build import optimizer
from dlblocks.optimizers.own_wrappers import BLOCKS

Array = NDArray[np.float64]

_random = np.random.default_rng(0)
_root = _random.normal(size=(3, 3))
CURVATURE = _root @ _root.T + 0.2 * np.eye(3)
START = np.array([1.5, -0.8, 0.6])
# Each step has a batch of its own, which is what friendly_sam is about.
NOISE = 0.3 * _random.normal(size=(12, 3))
STEPS, RHO, LR, MOMENTUM = 12, 0.3, 0.1, 0.5
BASE = {"name": "sgd", "momentum": MOMENTUM}
NAMES = [block.name for block in BLOCKS if block.tags["closure"]]


def gradient(theta: Array, t: int) -> Array:
    return CURVATURE @ theta + NOISE[t]


def closure_of(opt: Any, pieces: list[Tensor], t: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        opt.zero_grad()
        theta = torch.cat(pieces)
        loss = theta @ torch.tensor(CURVATURE) @ theta / 2 + torch.tensor(NOISE[t]) @ theta
        loss.backward()
        return loss.detach()

    return closure


def run(opt: Any, pieces: list[Tensor], gradients_first: bool = False) -> Iterator[Array]:
    for t in range(STEPS):
        closure = closure_of(opt, pieces, t)
        if gradients_first:
            closure()
        opt.step(closure)
        yield torch.cat(pieces).detach().numpy().copy()


def start() -> Tensor:
    return torch.tensor(START, requires_grad=True)


def worst(theta: Array, d: Array, adaptive: bool) -> Array:
    """The point of SAM, and of ASAM."""
    e = theta**2 * d / np.linalg.norm(abs(theta) * d) if adaptive else d / np.linalg.norm(d)
    return theta + RHO * e


def momentum() -> Callable[[Array], Array]:
    b = np.zeros(3)

    def step(g: Array) -> Array:
        nonlocal b
        b = MOMENTUM * b + g
        return b

    return step


def sam(theta: Array, adaptive: bool) -> Iterator[Array]:
    step = momentum()
    for t in range(STEPS):
        theta = theta - LR * step(gradient(worst(theta, gradient(theta, t), adaptive), t))
        yield theta


def gsam(theta: Array, adaptive: bool, alpha: float = 0.4) -> Iterator[Array]:
    step = momentum()
    for t in range(STEPS):
        g = gradient(theta, t)
        g_p = gradient(worst(theta, g, adaptive), t)
        vertical = g - (g @ g_p) / (g_p @ g_p) * g_p
        theta = theta - LR * step(g_p - alpha * vertical)
        yield theta


def wsam(theta: Array, adaptive: bool, gamma: float = 0.9, decouple: bool = True) -> Iterator[Array]:
    step, weight = momentum(), gamma / (1 - gamma)
    for t in range(STEPS):
        g = gradient(theta, t)
        sharpness = gradient(worst(theta, g, adaptive), t) - g
        if decouple:
            theta = theta - LR * step(g) - LR * weight * sharpness
        else:
            theta = theta - LR * step(g + weight * sharpness)
        yield theta


def looksam(theta: Array, adaptive: bool, k: int = 5, alpha: float = 0.7) -> Iterator[Array]:
    step = momentum()
    v = np.zeros(3)
    for t in range(STEPS):
        g = gradient(theta, t)
        if t % k == 0:
            used = gradient(worst(theta, g, adaptive), t)
            cosine = (used @ g) / np.linalg.norm(used) / np.linalg.norm(g)
            v = used - np.linalg.norm(used) * cosine * g / np.linalg.norm(g)
        else:
            used = g + alpha * np.linalg.norm(g) / np.linalg.norm(v) * v
        theta = theta - LR * step(used)
        yield theta


def friendly_sam(theta: Array, adaptive: bool, sigma: float = 1.0, decay: float = 0.9) -> Iterator[Array]:
    step = momentum()
    m: Array | None = None
    for t in range(STEPS):
        g = gradient(theta, t)
        d = g if m is None else g - sigma * m
        m = g if m is None else decay * m + (1 - decay) * g
        theta = theta - LR * step(gradient(worst(theta, d, adaptive), t))
        yield theta


REFERENCES: dict[Callable[..., Iterator[Array]], list[dict[str, Any]]] = {
    sam: [{}],
    gsam: [{}, {"alpha": 0.9}],
    wsam: [{}, {"gamma": 0.3}, {"gamma": 0.6, "decouple": False}],
    looksam: [{}, {"k": 2, "alpha": 0.3}],
    friendly_sam: [{}, {"sigma": 0.6, "decay": 0.4}],
}
BY_NAME = {reference.__name__: reference for reference in REFERENCES}
CASES = [(reference.__name__, case) for reference, cases in REFERENCES.items() for case in cases]


def test_every_relative_has_a_reference() -> None:
    assert set(BY_NAME) == set(NAMES)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_update_is_the_papers(name: str, params: dict[str, Any], adaptive: bool) -> None:
    """Of one tensor, and cut in two: all norms and products are over all parameters."""
    for pieces in ([START], [START[:1], START[1:]]):
        tensors = [torch.tensor(piece, requires_grad=True) for piece in pieces]
        opt = optimizer(name, tensors, base=BASE, lr=LR, rho=RHO, adaptive=adaptive, **params)
        wanted = BY_NAME[name](START, adaptive, **params)
        for t, (got, value) in enumerate(zip(run(opt, tensors), wanted, strict=True)):
            np.testing.assert_allclose(got, value, rtol=1e-9, err_msg=f"step {t}")


def test_wsam_at_a_half_and_gsam_without_alpha_are_sam() -> None:
    params: dict[str, dict[str, Any]] = {
        "sam": {},
        "wsam": {"gamma": 0.5, "decouple": False},
        "gsam": {"alpha": 0.0},
        "looksam": {"k": 1},
        "friendly_sam": {"sigma": 0.0},
    }
    assert set(params) == set(NAMES)
    ends = []
    for name, own in params.items():
        theta = start()
        *_, end = run(optimizer(name, [theta], base=BASE, lr=LR, rho=RHO, **own), [theta])
        ends.append(end)
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-9)


class _Constant:
    """The schedule of rho that its GSAM asks for."""

    def step(self) -> float:
        return RHO


# Our name -> its optimizer, and whether it wants the first gradients before step().
THEIRS: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "sam": (
        lambda theta: pytorch_optimizer.SAM([theta], torch.optim.SGD, rho=RHO, lr=LR, momentum=MOMENTUM),
        True,
    ),
    "wsam": (
        lambda theta: pytorch_optimizer.WSAM(
            torch.nn.Linear(1, 1), [theta], torch.optim.SGD, rho=RHO, lr=LR, momentum=MOMENTUM
        ),
        False,
    ),
    "looksam": (
        lambda theta: pytorch_optimizer.LookSAM(
            [theta], torch.optim.SGD, rho=RHO, k=5, lr=LR, momentum=MOMENTUM
        ),
        True,
    ),
    "friendly_sam": (
        lambda theta: pytorch_optimizer.FriendlySAM(
            [theta], torch.optim.SGD, rho=RHO, lr=LR, momentum=MOMENTUM
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_pytorch_optimizers_is_the_same(name: str) -> None:
    make, gradients_first = THEIRS[name]
    theta, other = start(), start()
    ours = run(optimizer(name, [theta], base=BASE, lr=LR, rho=RHO), [theta])
    for got, wanted in zip(ours, run(make(other), [other], gradients_first), strict=True):
        # Some of its norms are in float32.
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_pytorch_optimizers_gsam_is_the_same() -> None:
    """Whose step() wants the closure to return outputs too."""
    theta, other = start(), start()
    inner = torch.optim.SGD([other], lr=LR, momentum=MOMENTUM)
    theirs = pytorch_optimizer.GSAM([other], inner, torch.nn.Linear(1, 1), _Constant())
    ours = run(optimizer("gsam", [theta], base=BASE, lr=LR, rho=RHO), [theta])
    for t, got in enumerate(ours):
        closure = closure_of(inner, [other], t)

        def both(closure: Callable[[], Tensor] = closure) -> tuple[None, Tensor]:
            with torch.enable_grad():
                return None, closure()

        theirs.step(both)
        np.testing.assert_allclose(got, other.detach(), rtol=1e-6, atol=1e-7)


def test_looksam_takes_one_pass_between_looks() -> None:
    theta = start()
    opt = optimizer("looksam", [theta], base=BASE, lr=LR, k=3)
    passes = []
    for t in range(6):
        calls = 0
        inner = closure_of(opt, [theta], t)

        def counted(inner: Callable[[], Tensor] = inner) -> Tensor:
            nonlocal calls
            calls += 1
            return inner()

        opt.step(counted)
        passes.append(calls)
    assert passes == [2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_the_closure_is_needed(name: str) -> None:
    theta = start()
    theta.grad = torch.ones_like(theta)
    with pytest.raises(UserError, match="needs a closure"):
        optimizer(name, [theta]).step()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradient_stay(name: str) -> None:
    theta, idle = start(), torch.ones(3, requires_grad=True)
    opt = optimizer(name, [theta, idle], k=2) if name == "looksam" else optimizer(name, [theta, idle])
    list(run(opt, [theta]))
    assert torch.equal(idle, torch.ones(3))
    # One that gets its first gradient late, between two looks.
    idle.grad = torch.ones(3)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (theta.sum() + idle.sum()) ** 2
        loss.backward()
        return loss.detach()

    for _ in range(3):
        opt.step(closure)
    assert not torch.equal(idle, torch.ones(3))
    assert torch.isfinite(idle).all()
