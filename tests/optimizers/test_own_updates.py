"""Each of our own optimisers against its paper's update, written out in numpy float64.

tests/parity holds those that optax has to its numbers too.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dlblocks.errors import UserError
from dlblocks.optimizers import BLOCKS
from dlblocks.optimizers.acprop import ACProp
from dlblocks.optimizers.build import optimizer
from dlblocks.optimizers.muon import orthogonal
from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS
from dlblocks.records import Block

Array = NDArray[np.float64]

SIZE, STEPS = 4, 8
_random = np.random.default_rng(3)
_root = _random.normal(size=(SIZE, SIZE))
CURVATURE = _root @ _root.T / SIZE + 0.5 * np.eye(SIZE)
OFFSET = _random.normal(size=SIZE)
START = _random.normal(size=SIZE)
FLOOR = 2.0


def loss_of(theta: Array) -> float:
    return float(theta @ CURVATURE @ theta / 2 - OFFSET @ theta + FLOOR)


def gradient(theta: Array) -> Array:
    return CURVATURE @ theta - OFFSET


def adam_directions(betas, eps) -> Callable[[Array], Array]:
    m = v = np.zeros(SIZE)
    t = 0

    def direction(g: Array) -> Array:
        nonlocal m, v, t
        t += 1
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        return (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)

    return direction


def muon(theta: Array, lr, weight_decay, betas, eps, **_: Any):
    """Of a vector: AdamW."""
    direction = adam_directions(betas, eps)
    while True:
        theta = (1 - lr * weight_decay) * theta - lr * direction(gradient(theta))
        yield theta


def lamb(theta: Array, lr, betas, eps, weight_decay):
    direction = adam_directions(betas, eps)
    while True:
        u = direction(gradient(theta)) + weight_decay * theta
        theta = theta - lr * np.linalg.norm(theta) / np.linalg.norm(u) * u
        yield theta


def larc(theta: Array, lr, momentum, weight_decay, trust_coefficient, eps):
    b = 0
    while True:
        g = gradient(theta)
        size = np.linalg.norm(theta)
        r = trust_coefficient * size / (np.linalg.norm(g) + weight_decay * size + eps)
        b = momentum * b + min(r / lr, 1) * (g + weight_decay * theta)
        theta = theta - lr * b
        yield theta


def optimistic_gradient_descent(theta: Array, lr, alpha, beta, weight_decay):
    last = None
    while True:
        g = gradient(theta) + weight_decay * theta
        theta = theta - lr * (alpha * g + beta * (g - (g if last is None else last)))
        last = g
        yield theta


def optimistic_adam(theta: Array, lr, betas, eps, alpha, beta, weight_decay):
    direction, last = adam_directions(betas, eps), None
    while True:
        d = direction(gradient(theta))
        theta = (1 - lr * weight_decay) * theta
        theta = theta - lr * (alpha * d + beta * (d - (d if last is None else last)))
        last = d
        yield theta


def rmsprop_tf(theta: Array, lr, alpha, eps, weight_decay, momentum, centered):
    v, a, b = np.ones(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    while True:
        g = gradient(theta) + weight_decay * theta
        v = alpha * v + (1 - alpha) * g**2
        a = alpha * a + (1 - alpha) * g
        b = momentum * b + lr * g / np.sqrt((v - a**2 if centered else v) + eps)
        theta = theta - b
        yield theta


def noisy_sgd(theta: Array, lr, weight_decay, **noise: float):
    assert noise["eta"] == 0
    while True:
        theta = theta - lr * (gradient(theta) + weight_decay * theta)
        yield theta


def acprop(theta: Array, lr, betas, eps, weight_decay):
    m = s = np.zeros(SIZE)
    for t in range(1, 1000):
        g = gradient(theta)
        if t > 1:
            theta = (1 - lr * weight_decay) * theta
            theta = theta - lr * g / (np.sqrt(s / (1 - betas[1] ** (t - 1))) + eps)
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * (g - m) ** 2
        yield theta


def dog(theta: Array, lr, reps_rel, eps, weight_decay):
    first, total = theta, 0.0
    r = reps_rel * (1 + np.linalg.norm(theta))
    while True:
        g = gradient(theta) + weight_decay * theta
        r, total = max(r, np.linalg.norm(theta - first)), total + g @ g
        theta = theta - lr * r / np.sqrt(total + eps) * g
        yield theta


def dowg(theta: Array, lr, eps, weight_decay):
    first, r, v = theta, eps, 0.0
    while True:
        g = gradient(theta) + weight_decay * theta
        r = max(r, (theta - first) @ (theta - first))
        v = v + r * (g @ g)
        theta = theta - lr * r / (np.sqrt(v) + eps) * g
        yield theta


def cocob(theta: Array, lr, alpha, eps, weight_decay):
    first, scale = theta, np.full(SIZE, eps)
    total = reward = bets = np.zeros(SIZE)
    while True:
        g = gradient(theta) + weight_decay * theta
        scale = np.maximum(scale, abs(g))
        total = total + abs(g)
        reward = np.maximum(reward - (theta - first) * g, 0)
        bets = bets - g
        target = first + bets * (scale + reward) / (scale * np.maximum(total + scale, alpha * scale))
        theta = theta + lr * (target - theta)
        yield theta


def polyak_sgd(theta: Array, lr, f_min):
    while True:
        g = gradient(theta)
        theta = theta - min(lr, max(loss_of(theta) - f_min, 0) / (g @ g)) * g
        yield theta


def momo(theta: Array, lr, beta, lower_bound):
    averages = None
    while True:
        g = gradient(theta)
        now = (g, loss_of(theta), g @ theta)
        averages = (
            now
            if averages is None
            else [beta * a + (1 - beta) * n for a, n in zip(averages, now, strict=True)]
        )
        d, f, c = averages
        theta = theta - min(lr, max(f - lower_bound - c + d @ theta, 0) / (d @ d)) * d
        yield theta


def momo_adam(theta: Array, lr, betas, eps, lower_bound):
    m, v, f, c = np.zeros(SIZE), np.zeros(SIZE), 0.0, 0.0
    for t in range(1, 1000):
        g = gradient(theta)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        f = betas[0] * f + (1 - betas[0]) * loss_of(theta)
        c = betas[0] * c + (1 - betas[0]) * g @ theta
        u = m / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        b = 1 - betas[0] ** t
        theta = theta - min(lr / b, max(f - b * lower_bound - c + m @ theta, 0) / (m @ u)) * u
        yield theta


def adamaxw(theta: Array, lr, betas, eps, weight_decay):
    m = u = np.zeros(SIZE)
    for t in range(1, 1000):
        g = gradient(theta)
        m = betas[0] * m + (1 - betas[0]) * g
        u = np.maximum(betas[1] * u, abs(g) + eps)
        theta = (1 - lr * weight_decay) * theta - lr / (1 - betas[0] ** t) * m / u
        yield theta


def adopt(theta: Array, lr, betas, eps, weight_decay):
    v, m = gradient(theta) ** 2, np.zeros(SIZE)
    yield theta
    for t in range(1, 1000):
        g = gradient(theta)
        c = np.clip(g / np.maximum(np.sqrt(v), eps), -(t**0.25), t**0.25)
        m = betas[0] * m + (1 - betas[0]) * c
        theta = (1 - lr * weight_decay) * theta - lr * m
        v = betas[1] * v + (1 - betas[1]) * g**2
        yield theta


def simplified_ademamix(theta: Array, lr, betas, alpha, eps, weight_decay):
    m = v = np.zeros(SIZE)
    for t in range(1, 1000):
        g = gradient(theta)
        m = betas[0] * m + g
        v = betas[1] * v + (1 - betas[1]) * g**2
        theta = (1 - lr * weight_decay) * theta
        theta = theta - lr * (m + alpha * g) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield theta


def powersign(theta: Array, lr, beta, factor, weight_decay):
    m = np.zeros(SIZE)
    while True:
        g = gradient(theta) + weight_decay * theta
        m = beta * m + (1 - beta) * g
        theta = theta - lr * np.where(g * m > 0, factor, 1 / factor) * g
        yield theta


def addsign(theta: Array, lr, beta, alpha, weight_decay):
    m = np.zeros(SIZE)
    while True:
        g = gradient(theta) + weight_decay * theta
        m = beta * m + (1 - beta) * g
        theta = theta - lr * (alpha + np.where(g * m > 0, 1, -1)) * g
        yield theta


def cautious_adamw(theta: Array, lr, betas, eps, weight_decay):
    direction = adam_directions(betas, eps)
    while True:
        g = gradient(theta)
        d = direction(g)
        agree = d * g > 0
        theta = (1 - lr * weight_decay) * theta
        theta = theta - lr * np.where(agree, d, 0) * SIZE / (agree.sum() + 1)
        yield theta


def sgld(theta: Array, lr, temperature, weight_decay):
    assert temperature == 0
    while True:
        theta = theta - lr * (gradient(theta) + weight_decay * theta)
        yield theta


def psgld(theta: Array, lr, temperature, alpha, eps, weight_decay):
    assert temperature == 0
    v = np.zeros(SIZE)
    while True:
        g = gradient(theta) + weight_decay * theta
        v = alpha * v + (1 - alpha) * g**2
        theta = theta - lr * g / (np.sqrt(v) + eps)
        yield theta


def sgd_hd(theta: Array, lr, hyper_lr):
    last = np.zeros(SIZE)
    while True:
        g = gradient(theta)
        lr = lr + hyper_lr * (g @ last)
        theta, last = theta - lr * g, g
        yield theta


def adam_hd(theta: Array, lr, betas, eps, hyper_lr):
    direction, last = adam_directions(betas, eps), np.zeros(SIZE)
    while True:
        g = gradient(theta)
        lr = lr + hyper_lr * (g @ last)
        last = direction(g)
        theta = theta - lr * last
        yield theta


def adagrad_norm(theta: Array, lr, b_0, weight_decay):
    total = b_0**2
    while True:
        g = gradient(theta) + weight_decay * theta
        total = total + g @ g
        theta = theta - lr / np.sqrt(total) * g
        yield theta


def adgd(theta: Array, lr, first, weight_decay):
    rate, growth, last = first, np.inf, None
    while True:
        g = gradient(theta) + weight_decay * theta
        if last is not None:
            measured = np.linalg.norm(theta - last[0]) / (2 * np.linalg.norm(g - last[1]))
            before, rate = rate, min(np.sqrt(1 + growth) * rate, measured)
            growth = rate / before
        last = theta, g
        theta = theta - lr * rate * g
        yield theta


def normalized_sgd(theta: Array, lr, momentum, weight_decay):
    m = None
    while True:
        g = gradient(theta) + weight_decay * theta
        m = g if m is None else momentum * m + (1 - momentum) * g
        theta = theta - lr * m / np.linalg.norm(m)
        yield theta


_SHORT = {"lr": 0.05, "betas": [0.7, 0.8], "eps": 1e-3}
_DECAY = {"weight_decay": 0.1}
REFERENCES: dict[Callable[..., Any], list[dict[str, Any]]] = {
    muon: [{}, {**_SHORT, **_DECAY}],
    lamb: [{}, {**_SHORT, **_DECAY}],
    larc: [{}, {"lr": 0.05, "trust_coefficient": 0.03, "momentum": 0.8, **_DECAY}, {"lr": 1e-6, "eps": 0.1}],
    optimistic_gradient_descent: [{}, {"lr": 0.1, "alpha": 0.5, "beta": 2.0, **_DECAY}],
    optimistic_adam: [{}, {**_SHORT, "alpha": 0.5, "beta": 2.0, **_DECAY}],
    rmsprop_tf: [
        {},
        {"alpha": 0.7, "eps": 0.1, "momentum": 0.8, **_DECAY},
        {"lr": 0.1, "alpha": 0.7, "momentum": 0.8, "centered": True},
    ],
    noisy_sgd: [{"eta": 0.0}, {"eta": 0.0, "lr": 0.1, **_DECAY}],
    acprop: [{}, {**_SHORT, **_DECAY}],
    dog: [{}, {"lr": 0.5, "reps_rel": 0.1, "eps": 0.1, **_DECAY}],
    dowg: [{}, {"lr": 0.5, "eps": 0.1, **_DECAY}],
    cocob: [{}, {"lr": 0.5, "alpha": 3.0, "eps": 0.1, **_DECAY}],
    polyak_sgd: [{}, {"lr": 0.2, "f_min": 1.0}],
    momo: [{}, {"lr": 0.1, "beta": 0.6, "lower_bound": 0.5}],
    momo_adam: [{}, {**_SHORT, "lr": 0.5, "lower_bound": 0.5}],
    adamaxw: [{}, {**_SHORT, **_DECAY}],
    adopt: [{}, {"lr": 0.05, "betas": [0.7, 0.8], "eps": 0.5, **_DECAY}],
    simplified_ademamix: [{}, {**_SHORT, "alpha": 2.0, **_DECAY}],
    powersign: [{}, {"lr": 0.2, "beta": 0.6, "factor": 2.0, **_DECAY}],
    addsign: [{}, {"lr": 0.2, "beta": 0.6, "alpha": 1.5, **_DECAY}],
    cautious_adamw: [{}, {**_SHORT, "lr": 0.5, **_DECAY}],
    sgld: [{"temperature": 0.0}, {"temperature": 0.0, "lr": 0.1, **_DECAY}],
    psgld: [{"temperature": 0.0}, {"temperature": 0.0, "lr": 0.1, "alpha": 0.8, "eps": 0.1, **_DECAY}],
    sgd_hd: [{}, {"lr": 0.1, "hyper_lr": 0.01}],
    adam_hd: [{}, {**_SHORT, "hyper_lr": 0.01}],
    adgd: [{}, {"lr": 0.5, "first": 0.2, **_DECAY}],
    adagrad_norm: [{}, {"lr": 0.5, "b_0": 2.0, **_DECAY}],
    normalized_sgd: [{}, {"lr": 0.1, "momentum": 0.5, **_DECAY}],
}
BY_NAME = {reference.__name__: reference for reference in REFERENCES}
CASES = [(reference.__name__, case) for reference, cases in REFERENCES.items() for case in cases]
# Wrappers have a file of their own.
OWN = {
    block.name: block
    for block in BLOCKS
    if str(block.target).startswith("dlblocks.optimizers.")
    and not block.tags.get("wraps")
    and not block.package  # one of a package, with a fault mended
}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def full(block: Block, params: dict[str, Any]) -> dict[str, Any]:
    """Every parameter that the update itself has."""
    own = [param for param in block.params if param != DECAY_NORM_AND_BIAS]
    return {param.name: params.get(param.name, param.default) for param in own}


def closure_of(pieces: list[torch.Tensor], opt: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        opt.zero_grad()
        theta = torch.cat(pieces)
        loss = theta @ torch.tensor(CURVATURE) @ theta / 2 - torch.tensor(OFFSET) @ theta + FLOOR
        loss.backward()
        return loss.detach()

    return closure


def run(name: str, pieces: list[torch.Tensor], params: dict[str, Any]) -> Iterator[Array]:
    opt = optimizer(name, pieces, **params)
    for _ in range(STEPS):
        opt.step(closure_of(pieces, opt))
        yield torch.cat(pieces).detach().numpy()


def test_every_own_optimizer_has_a_reference() -> None:
    assert set(BY_NAME) == set(OWN)


@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_update_is_the_papers(name: str, params: dict[str, Any]) -> None:
    theta = torch.tensor(START, requires_grad=True)
    wanted = BY_NAME[name](START, **full(OWN[name], params))
    for t, got in enumerate(run(name, [theta], params)):
        np.testing.assert_allclose(got, next(wanted), rtol=1e-10, atol=1e-12, err_msg=f"step {t}")


@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_norms_are_over_all_tensors_or_over_each_as_the_tag_says(name: str, params: dict[str, Any]) -> None:
    """Cut in two tensors the path stays the same, but for the rates that each tensor has of its own."""
    pieces = [torch.tensor(START[:1], requires_grad=True), torch.tensor(START[1:], requires_grad=True)]
    wanted = BY_NAME[name](START, **full(OWN[name], params))
    same = all(np.allclose(got, next(wanted), rtol=1e-10, atol=1e-12) for got in run(name, pieces, params))
    assert same == (name not in ("cautious_adamw", "lamb", "larc") or params.get("lr") == 1e-6)


@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_state_round_trip(name: str, params: dict[str, Any]) -> None:
    theta = torch.tensor(START, requires_grad=True)
    opt = optimizer(name, [theta], **params)
    for _ in range(3):
        opt.step(closure_of([theta], opt))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    other = theta.detach().clone().requires_grad_()
    resumed = optimizer(name, [other], **params)
    resumed.load_state_dict(copy.deepcopy(torch.load(file, weights_only=True)))
    for _ in range(3):
        opt.step(closure_of([theta], opt))
        resumed.step(closure_of([other], resumed))
    assert torch.equal(theta, other)


@pytest.mark.parametrize("name", OWN)
def test_parameters_without_gradient_stay(name: str) -> None:
    theta, idle = torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    opt = optimizer(name, [theta, idle])
    for _ in range(2):
        theta.grad = torch.ones(3)
        opt.step(lambda: torch.tensor(1.0))
    assert not torch.equal(theta, torch.ones(3))
    assert torch.equal(idle, torch.ones(2, 2))


@pytest.mark.parametrize("name", [name for name, block in OWN.items() if block.tags["closure"]])
def test_the_loss_is_needed(name: str) -> None:
    theta = torch.ones(3, requires_grad=True)
    theta.grad = torch.ones(3)
    with pytest.raises(UserError, match="needs a closure that returns the loss"):
        optimizer(name, [theta]).step()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
def test_muon_of_a_matrix_is_torchs(shape: tuple[int, int], adjust_lr_fn: str) -> None:
    torch.set_default_dtype(torch.float32)
    first = torch.randn(shape)
    ours, theirs = first.clone().requires_grad_(), first.clone().requires_grad_()
    params = {"lr": 0.02, "momentum": 0.9, "adjust_lr_fn": adjust_lr_fn}
    pairs = [(ours, optimizer("muon", [ours], **params)), (theirs, torch.optim.Muon([theirs], **params))]
    for _ in range(4):
        grad = torch.randn(shape)
        for theta, opt in pairs:
            theta.grad = grad.clone()
            opt.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_makes_matrices_orthogonal_and_flattens_kernels() -> None:
    singular = torch.linalg.svdvals(orthogonal(torch.randn(20, 8), 5))
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    kernel = torch.zeros(6, 2, 3, 3, requires_grad=True)
    kernel.grad = torch.randn(6, 2, 3, 3)
    matrix = torch.zeros(6, 18, requires_grad=True)
    matrix.grad = kernel.grad.flatten(1)
    for theta in (kernel, matrix):
        optimizer("muon", [theta]).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_noise_has_the_deviation_that_it_says() -> None:
    theta = torch.zeros(100_000, requires_grad=True)
    opt = optimizer("noisy_sgd", [theta], lr=1.0, eta=0.04, gamma=1.0)
    for t in (1, 2, 3, 4):
        before = theta.detach().clone()
        theta.grad = torch.zeros_like(theta)
        opt.step()
        assert (theta.detach() - before).std().item() == pytest.approx(0.2 / t**0.5, rel=0.02)


def test_langevin_noise_has_the_deviation_that_it_says() -> None:
    """Of SGLD sqrt(2 lr T); of the preconditioned one that over the root of its denominator."""
    for name, denominator in (("sgld", 1.0), ("psgld", 0.5 + 0.1)):
        theta = torch.zeros(100_000, requires_grad=True)
        params = {} if name == "sgld" else {"alpha": 0.0, "eps": 0.1}
        opt = optimizer(name, [theta], lr=0.02, temperature=0.25, **params)
        theta.grad = torch.full_like(theta, 0.5)
        opt.step()
        values = theta.detach()
        assert values.std().item() == pytest.approx((2 * 0.02 * 0.25 / denominator) ** 0.5, rel=0.02)
        assert values.mean().item() == pytest.approx(-0.02 * 0.5 / denominator, abs=2e-3)


def test_sgld_draws_from_the_posterior() -> None:
    """Of the loss theta^2 / 2 at temperature 0.25: normal with variance 0.25."""
    torch.manual_seed(0)
    theta = torch.zeros(20_000, requires_grad=True)
    opt = optimizer("sgld", [theta], lr=0.02, temperature=0.25)
    for _ in range(250):
        theta.grad = theta.detach().clone()
        opt.step()
    assert theta.detach().var().item() == pytest.approx(0.25, rel=0.05)


def test_rates_of_hypergradients_rise_while_gradients_agree_and_fall_when_they_turn() -> None:
    theta = torch.zeros(1, requires_grad=True)
    opt = optimizer("sgd_hd", [theta], lr=0.1, hyper_lr=0.01)
    steps = []
    for g in (1.0, 1.0, 1.0, -1.0):
        theta.grad, before = torch.tensor([g]), theta.item()
        opt.step()
        steps.append(abs(theta.item() - before))
    assert steps == pytest.approx([0.1, 0.11, 0.12, 0.11])


def test_lamb_of_a_tensor_of_zeros_takes_adams_step() -> None:
    theta = torch.zeros(3, requires_grad=True)
    theta.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer("lamb", [theta], lr=0.1).step()
    torch.testing.assert_close(theta.detach(), torch.tensor([-0.1, 0.1, -0.1]), rtol=1e-5, atol=0)


def test_sparse_adam_refuses_dense_parameters() -> None:
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    with pytest.raises(UserError, match=r"optimizer: moves only rows .*; 1\.weight has none"):
        optimizer("sparse_adam", net)
    opt = optimizer("sparse_adam", net[0])
    before = net[0].weight.detach().clone()
    net(torch.tensor([1, 3])).sum().backward()
    opt.step()
    moved = (net[0].weight.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, True, False]


def test_acprop_takes_no_endless_step_where_there_was_no_gradient_yet() -> None:
    """The second entry gets its first gradient at the third step, when its variance is still 0."""
    theta = torch.nn.Parameter(torch.ones(2))
    optimizer = ACProp([theta], lr=0.01)
    for g in ([1.0, 0.0], [0.5, 0.0], [0.2, 1.0]):
        theta.grad = torch.tensor(g)
        optimizer.step()
    assert theta[1] == 1.0
    theta.grad = torch.tensor([0.1, 1.0])
    optimizer.step()
    # s is 0.001 * 0.9^2 after one gradient, over 1 - 0.999^3.
    assert theta[1].item() == pytest.approx(1 - 0.01 / (0.001 * 0.81 / (1 - 0.999**3)) ** 0.5, rel=1e-4)
