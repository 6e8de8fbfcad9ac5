"""Each difference that an optimiser declares is there, and is just that.

The library's numbers are ours with the declared change; timm's are in tests/foreign.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import pytorch_optimizer
import torch
from differing import CHECKS, GRADS, RECORDED, START, checks_of, close, declared_of, default, differs

import dlblocks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def ours(
    name: str, rates: Any = None, start: np.ndarray = START, grads: np.ndarray = GRADS, **params: Any
) -> np.ndarray:
    theta = torch.tensor(start, requires_grad=True)
    opt = dlblocks.optimizer(name, [theta], **params)
    path = []
    for t, grad in enumerate(grads):
        if rates is not None:
            opt.param_groups[0]["lr"] = rates[t]
        theta.grad = torch.tensor(grad)
        opt.step()
        path.append(theta.detach().numpy().copy())
    return np.array(path)


def kerass(name: str, rates: Any = None, **params: Any) -> np.ndarray:
    keras.config.set_floatx("float64")
    try:
        theta = keras.Variable(START, dtype="float64")
        opt = getattr(keras.optimizers, name)(**params)
        opt.build([theta])
        path = []
        for t, grad in enumerate(GRADS):
            if rates is not None:
                opt.learning_rate = rates[t]
            opt.apply([torch.tensor(grad)], [theta])
            path.append(theta.value.detach().numpy().copy())
    finally:
        keras.config.set_floatx("float32")
    return np.array(path)


@differs("optimizer", "sgd", "torch")
def _() -> None:
    assert default(torch.optim.SGD, "lr") == 0.001


@differs("optimizer", "sgd", "keras")
def _() -> None:
    rates = [0.1, 0.05, 0.2, 0.01, 0.1, 0.3]
    theirs = kerass("SGD", rates, learning_rate=0.1, momentum=0.8)
    theta, b, wanted = START, np.zeros_like(START), []
    for lr, g in zip(rates, GRADS, strict=True):
        b = 0.8 * b - lr * g
        theta = theta + b
        wanted.append(theta)
    close(theirs, wanted)
    assert not np.allclose(theirs, ours("sgd", rates, lr=0.1, momentum=0.8))
    close(kerass("SGD", learning_rate=0.1, momentum=0.8), ours("sgd", lr=0.1, momentum=0.8))


def _adam_eps_before(eps: float, decay: float = 0.0) -> list[np.ndarray]:
    theta, m, v, path = START, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 0.05 * decay * theta
        theta = theta - 0.05 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
        path.append(theta)
    return path


@differs("optimizer", "adam", "keras")
def _() -> None:
    assert default(keras.optimizers.Adam, "epsilon") == 1e-7
    close(kerass("Adam", learning_rate=0.05, epsilon=0.1), _adam_eps_before(0.1))
    assert not np.allclose(ours("adam", lr=0.05, eps=0.1), _adam_eps_before(0.1))


@differs("optimizer", "adam", "optax")
def _() -> None:
    theta, m, v, largest, wanted = START, 0.0, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        largest = np.maximum(largest, v / (1 - 0.999**t))
        theta = theta - 0.05 * m / (1 - 0.9**t) / (np.sqrt(largest) + 1e-8)
        wanted.append(theta)
    close(RECORDED["optimizers"]["amsgrad"], wanted)
    assert not np.allclose(wanted, ours("adam", lr=0.05, amsgrad=True), rtol=1e-2)


@differs("optimizer", "adan", "optax")
def _() -> None:
    close(RECORDED["optimizers"]["adan"], _adan(factor=1 - 0.92))
    close(ours("adan", lr=0.05), _adan(factor=0.92))


def _adan(factor: float) -> list[np.ndarray]:
    """Of betas 0.98, 0.92 and 0.99."""
    theta, m, u, n, last, path = START, 0.0, 0.0, 0.0, GRADS[0], []
    for t, g in enumerate(GRADS, 1):
        d, last = g - last, g
        m, u = 0.98 * m + 0.02 * g, 0.92 * u + 0.08 * d
        n = 0.99 * n + 0.01 * (g + factor * d) ** 2
        step = m / (1 - 0.98**t) + factor * u / (1 - 0.92**t)
        theta = theta - 0.05 * step / (np.sqrt(n / (1 - 0.99**t)) + 1e-8)
        path.append(theta)
    return path


@differs("optimizer", "adamw", "keras")
def _() -> None:
    assert default(keras.optimizers.AdamW, "weight_decay") == 0.004
    close(kerass("AdamW", learning_rate=0.05, epsilon=0.1, weight_decay=0.3), _adam_eps_before(0.1, 0.3))
    after = ours("adamw", lr=0.05, eps=0.1, weight_decay=0.3)
    assert not np.allclose(after, _adam_eps_before(0.1, 0.3), rtol=1e-3)


@differs("optimizer", "adamw", "optax")
def _() -> None:
    assert RECORDED["defaults"]["adamw.weight_decay"] == 1e-4
    close(RECORDED["optimizers"]["adamw"], ours("adamw", lr=0.05, weight_decay=0.1))


@differs("optimizer", "rmsprop", "keras")
def _() -> None:
    assert [default(keras.optimizers.RMSprop, p) for p in ("rho", "learning_rate", "epsilon")] == [
        0.9,
        0.001,
        1e-7,
    ]
    theta, v, wanted = START, 0.0, []
    for g in GRADS:
        v = 0.8 * v + 0.2 * g**2
        theta = theta - 0.05 * g / np.sqrt(v + 0.1)
        wanted.append(theta)
    close(kerass("RMSprop", learning_rate=0.05, rho=0.8, epsilon=0.1), wanted)
    assert not np.allclose(wanted, ours("rmsprop", lr=0.05, alpha=0.8, eps=0.1), rtol=1e-2)


@differs("optimizer", "adagrad", "keras")
def _() -> None:
    names = ("learning_rate", "initial_accumulator_value", "epsilon")
    assert [default(keras.optimizers.Adagrad, p) for p in names] == [0.001, 0.1, 1e-7]
    theta, total, wanted = START, 0.3, []
    for g in GRADS:
        total = total + g**2
        theta = theta - 0.05 * g / np.sqrt(total + 0.1)
        wanted.append(theta)
    close(kerass("Adagrad", learning_rate=0.05, initial_accumulator_value=0.3, epsilon=0.1), wanted)
    outside = ours("adagrad", lr=0.05, initial_accumulator_value=0.3, eps=0.1)
    assert not np.allclose(wanted, outside, rtol=1e-3)


@differs("optimizer", "adadelta", "keras")
def _() -> None:
    names = ("learning_rate", "rho", "epsilon")
    assert [default(keras.optimizers.Adadelta, p) for p in names] == [0.001, 0.95, 1e-7]
    close(kerass("Adadelta"), ours("adadelta", lr=0.001, rho=0.95, eps=1e-7))


@differs("optimizer", "adamax", "keras")
def _() -> None:
    assert [default(keras.optimizers.Adamax, p) for p in ("learning_rate", "epsilon")] == [0.001, 1e-7]
    theta, m, u, wanted = START, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, u = 0.9 * m + 0.1 * g, np.maximum(0.5 * u, abs(g))
        theta = theta - 0.05 / (1 - 0.9**t) * m / (u + 0.1)
        wanted.append(theta)
    close(kerass("Adamax", learning_rate=0.05, beta_2=0.5, epsilon=0.1), wanted)
    assert not np.allclose(wanted, ours("adamax", lr=0.05, betas=[0.9, 0.5], eps=0.1), rtol=1e-3)


@differs("optimizer", "nadam", "keras")
def _() -> None:
    assert [default(keras.optimizers.Nadam, p) for p in ("learning_rate", "epsilon")] == [0.001, 1e-7]
    theirs = kerass("Nadam", learning_rate=0.05, epsilon=1e-8)
    close(theirs, ours("nadam", lr=0.05, momentum_decay=1.0))
    assert not np.allclose(theirs, ours("nadam", lr=0.05))


@differs("optimizer", "adamaxw", "optax")
def _() -> None:
    assert RECORDED["defaults"]["adamaxw.weight_decay"] == 1e-4
    close(RECORDED["optimizers"]["adamaxw"], ours("adamaxw", lr=0.05, eps=1e-30, weight_decay=0.1))


@differs("optimizer", "lars", "optax")
def _() -> None:
    """Without decay a matrix goes the same way: see test_jax."""
    path = RECORDED["optimizers"]["lars"]
    close(path, _lars(START, GRADS, together=True))
    assert not np.allclose(path, ours("lars", lr=0.05, weight_decay=0.1))
    start, grads = np.array(RECORDED["matrix_start"]), np.array(RECORDED["matrix_grads"])
    close(RECORDED["matrix_optimizers"]["lars with decay"], _lars(start, grads, together=True))
    close(
        ours("lars", start=start, grads=grads, lr=0.05, weight_decay=0.1), _lars(start, grads, together=False)
    )
    # Our vectors take momentum steps without decay.
    close(ours("lars", lr=0.05, weight_decay=0.1), ours("sgd", lr=0.05, momentum=0.9))


def _lars(theta: np.ndarray, grads: np.ndarray, together: bool) -> list[np.ndarray]:
    """Of decay 0.1; the ratio to the norm of g and decay together, or to the sum of their norms."""
    b, path = np.zeros_like(theta), []
    for g in grads:
        size, decayed = np.linalg.norm(theta), g + 0.1 * theta
        length = np.linalg.norm(decayed) if together else np.linalg.norm(g) + 0.1 * size
        b = 0.9 * b + 1e-3 * size / length * decayed
        theta = theta - 0.05 * b
        path.append(theta)
    return path


@differs("optimizer", "muon", "optax")
def _() -> None:
    start, grads = np.array(RECORDED["matrix_start"]), np.array(RECORDED["matrix_grads"])
    path = RECORDED["matrix_optimizers"]["muon with nesterov"]
    close(path, _muon(start, grads, corrected=True), 1e-6)
    # Ours is orthogonal to the precision of bfloat16.
    plain = ours("muon", start=start, grads=grads, lr=0.05, weight_decay=0.0)
    np.testing.assert_allclose(plain, _muon(start, grads, corrected=False), atol=1e-3)
    assert not np.allclose(path, plain, atol=3e-3)


def _muon(theta: np.ndarray, grads: np.ndarray, corrected: bool) -> list[np.ndarray]:
    m, path = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = 0.95 * m + 0.05 * g
        ahead = (1 - 0.95 ** (t + 1), 1 - 0.95**t) if corrected else (1.0, 1.0)
        x = 0.95 * m / ahead[0] + 0.05 * g / ahead[1]
        x = x / np.linalg.norm(x)
        for _ in range(5):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.775 * gram + 2.0315 * gram @ gram)
        theta = theta - 0.05 * 0.2 * math.sqrt(max(theta.shape)) * x
        path.append(theta)
    return path


@differs("optimizer", "sophia", "optax")
def _() -> None:
    """The two given the same diagonal of the Hessian every ten steps."""
    curvature = np.array(RECORDED["curvature"])
    theta, m, h, wanted = START, 0.0, np.zeros_like(START), []
    for t, g in enumerate(GRADS, 1):
        m = 0.96 * m + 0.04 * g
        theta = theta - 0.05 * np.clip(m / (1 - 0.96**t) / np.maximum(0.01 * h, 1e-12), -1, 1)
        h = 0.01 * curvature
        wanted.append(theta)
    close(RECORDED["optimizers"]["sophia"], wanted)

    start = torch.tensor(START, requires_grad=True)
    opt = dlblocks.optimizer("sophia", [start], lr=0.05)
    theta, m, path, own = START, 0.0, [], []
    for t, g in enumerate(GRADS):
        start.grad = torch.tensor(g)
        opt.step(hessian=[torch.tensor(curvature)] if t == 0 else [torch.tensor(0.01 * curvature)])
        own.append(start.detach().numpy().copy())
        h = 0.01 * curvature if t == 0 else 0.99 * h + 0.01 * 0.01 * curvature
        m = 0.96 * m + 0.04 * g
        theta = theta - 0.05 * np.clip(m / np.maximum(h, 1e-12), -0.01, 0.01)
        path.append(theta)
    close(own, path)


@differs("optimizer", "lbfgs", "optax")
def _() -> None:
    """On the quadratic, without a search of the line."""
    curvature, path = np.array(RECORDED["curvature"]), np.array(RECORDED["descents"]["lbfgs"])
    g = curvature * START
    close(path[0], START - g / np.linalg.norm(g))
    theta = torch.tensor(START, requires_grad=True)
    opt = dlblocks.optimizer("lbfgs", [theta], max_iter=1, history_size=10, line_search_fn=None)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = (torch.tensor(curvature) * theta**2).sum() / 2
        loss.backward()
        return loss

    # Ours divides the first rate by the sum of |g|; from the same second point on, the two go the same way.
    rates = [abs(g).sum() / np.linalg.norm(g)] + [1.0] * 11
    for rate, wanted in zip(rates, path, strict=True):
        opt.param_groups[0]["lr"] = rate
        opt.step(closure)
        close(theta.detach(), wanted)


@differs("optimizer", "schedule_free_adamw", "keras")
def _() -> None:
    path = kerass("ScheduleFreeAdamW", learning_rate=0.05)
    close(path, _schedule_free(after=True), 1e-6)
    theta = torch.tensor(START, requires_grad=True)
    opt: Any = dlblocks.optimizer("schedule_free_adamw", [theta], lr=0.05)
    opt.train()
    for g, wanted in zip(GRADS, _schedule_free(after=False), strict=True):
        theta.grad = torch.tensor(g)
        opt.step()
        close(theta.detach(), wanted)
    assert not np.allclose(path[-1], wanted, rtol=1e-3)


def _schedule_free(after: bool) -> list[np.ndarray]:
    """The points of the gradients; the mean x found from them with z of after the step or of before."""
    y = z = START
    v, path = np.zeros_like(START), []
    for t, g in enumerate(GRADS, 1):
        v = 0.999 * v + 0.001 * g**2
        last, z = z, z - 0.05 * g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = (y - 0.1 * (z if after else last)) / 0.9
        x = x + (z - x) / t
        y = 0.1 * z + 0.9 * x
        path.append(y)
    return path


@differs("optimizer", "ftrl", "keras")
def _() -> None:
    assert default(keras.optimizers.Ftrl, "initial_accumulator_value") == 0.1
    close(kerass("Ftrl", learning_rate=0.05, learning_rate_power=-0.3), _ftrl(0.1, 0.3, 0.3))
    params = {"initial_accumulator_value": 0.0, "l2_regularization_strength": 0.1}
    close(kerass("Ftrl", learning_rate=0.05, **params), ours("ftrl", lr=0.05, lambda_2=0.2))
    close(ours("ftrl", lr=0.05, lr_power=-0.3), _ftrl(0.0, 0.3, 0.5))


def _ftrl(first: float, power: float, below: float) -> list[np.ndarray]:
    """Of powers of the sum of squares in the rate's change and in the denominator."""
    theta, n, z, path = START, np.full_like(START, first), np.zeros_like(START), []
    for g in GRADS:
        z = z + g - ((n + g**2) ** power - n**power) / 0.05 * theta
        n = n + g**2
        theta = -z / (n**below / 0.05)
        path.append(theta)
    return path


@differs("optimizer", "nadam", "optax")
def _() -> None:
    theta, m, v, wanted = START, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        theta = theta - 0.05 * ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        wanted.append(theta)
    close(RECORDED["optimizers"]["nadam"], wanted)
    assert not np.allclose(wanted, ours("nadam", lr=0.05), rtol=1e-3)


@differs("optimizer", "lbfgs", "torch")
def _() -> None:
    assert default(torch.optim.LBFGS, "line_search_fn") is None


@differs("optimizer", "muon", "torch")
def _() -> None:
    assert default(torch.optim.Muon, "adjust_lr_fn") in (None, "original")
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([torch.zeros(3, requires_grad=True)])
    dlblocks.optimizer("muon", [torch.zeros(3, requires_grad=True)])


@differs("optimizer", "acprop", "optax")
def _() -> None:
    theta, m, s, wanted = START, np.zeros_like(START), np.zeros_like(START), []
    for t, g in enumerate(GRADS, 1):
        root = 1.0 if t == 1 else np.sqrt(s / (1 - 0.999 ** (t - 1)))
        theta = theta - 0.05 * g / root
        s = 0.999 * s + 0.001 * (g - m) ** 2
        m = 0.9 * m + 0.1 * g
        wanted.append(theta)
    close(RECORDED["optimizers"]["acprop"], wanted)
    assert not np.allclose(wanted, ours("acprop", lr=0.05), rtol=1e-3)


@differs("optimizer", "rprop", "optax")
def _() -> None:
    theta, size, last, wanted = START, np.full_like(START, 0.05), np.zeros_like(START), []
    for g in GRADS:
        turned = g * last < 0
        size = np.clip(size * np.select([g * last > 0, turned], [1.2, 0.5], 1.0), 1e-6, 50)
        theta = theta - np.where(turned, 0, last)
        last = np.where(turned, 0, size * np.sign(g))
        wanted.append(theta)
    close(RECORDED["optimizers"]["rprop"], wanted)
    assert not np.allclose(wanted, ours("rprop", lr=0.05), rtol=1e-3)


@differs("optimizer", "looksam", "pytorch-optimizer")
def _() -> None:
    """The climb is along all parameters in both; what is kept of it is measured in each tensor alone in theirs."""
    slopes = [np.array([0.2, 0.05]), np.array([0.1, 0.3, 0.02])]
    begin = [np.array([1.0, -1.2]), np.array([0.5, 1.5, -1.0])]
    ends = []
    for make in (
        lambda tensors: pytorch_optimizer.LookSAM(tensors, torch.optim.SGD, rho=0.3, k=3, alpha=0.7, lr=0.1),
        lambda tensors: dlblocks.optimizer("looksam", tensors, base="sgd", rho=0.3, k=3, alpha=0.7, lr=0.1),
    ):
        tensors = [torch.tensor(each, requires_grad=True) for each in begin]
        opt = make(tensors)

        def closure(tensors: list[torch.Tensor] = tensors) -> torch.Tensor:
            for theta in tensors:
                theta.grad = None
            loss = sum((torch.tensor(c) * x**4).sum() for c, x in zip(slopes, tensors, strict=True))
            loss.backward()
            return loss.detach()

        for _ in range(5):
            closure()
            opt.step(closure)
        ends.append([theta.detach().numpy() for theta in tensors])

    def gradients(at: list[np.ndarray]) -> list[np.ndarray]:
        return [4 * c * x**3 for c, x in zip(slopes, at, strict=True)]

    theta, kept = begin, begin
    for t in range(5):
        g = gradients(theta)
        size = np.linalg.norm(np.concatenate(g))
        if t % 3 == 0:
            used = gradients([x + 0.3 * each / size for x, each in zip(theta, g, strict=True)])
            kept = [u - (u @ each) / (each @ each) * each for u, each in zip(used, g, strict=True)]
        else:
            scales = [np.linalg.norm(each) / np.linalg.norm(v) for each, v in zip(g, kept, strict=True)]
            used = [each + 0.7 * s * v for each, s, v in zip(g, scales, kept, strict=True)]
        theta = [x - 0.1 * u for x, u in zip(theta, used, strict=True)]
    for got, wanted in zip(ends[0], theta, strict=True):
        close(got, wanted, 1e-5)
    assert not np.allclose(np.concatenate(ends[0]), np.concatenate(ends[1]), rtol=1e-3)


def test_every_declared_difference_is_checked_and_no_other() -> None:
    assert checks_of("optimizer") == declared_of("optimizer")


@pytest.mark.parametrize("key", checks_of("optimizer"), ids="-".join)
def test_it_is_just_that(key: tuple[str, str, str]) -> None:
    CHECKS[key]()
