"""Each of torch's optimisers against its paper's update, written out in numpy float64."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlblocks.errors import UserError
from dlblocks.optimizers import BLOCKS, DECAY_NORM_AND_BIAS, IMPLEMENTATION
from dlblocks.optimizers.build import optimizer
from dlblocks.records import SAME, Block

Array = NDArray[np.float64]
Gradient = Callable[[Array], Array]

SIZE, STEPS = 4, 8
_random = np.random.default_rng(0)
_root = _random.normal(size=(SIZE, SIZE))
CURVATURE = _root @ _root.T / SIZE + 0.5 * np.eye(SIZE)
OFFSET = _random.normal(size=SIZE)
START = _random.normal(size=SIZE)


def gradient(theta: Array) -> Array:
    """Of `theta A theta / 2 - b theta`."""
    return CURVATURE @ theta - OFFSET


def sgd(theta: Array, lr, momentum, dampening, weight_decay, nesterov):
    b = None
    while True:
        g = gradient(theta) + weight_decay * theta
        b = g if b is None else momentum * b + (1 - dampening) * g
        theta = theta - lr * ((g + momentum * b) if nesterov else b)
        yield theta


def _adam(theta: Array, lr, betas, eps, weight_decay, amsgrad, decoupled):
    m = v = largest = np.zeros_like(theta)
    for t in range(1, 1000):
        g = gradient(theta) + (0 if decoupled else weight_decay * theta)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v)
        root = np.sqrt((largest if amsgrad else v) / (1 - betas[1] ** t))
        if decoupled:
            theta = theta - lr * weight_decay * theta
        theta = theta - lr * (m / (1 - betas[0] ** t)) / (root + eps)
        yield theta


def adam(theta: Array, **params: Any):
    return _adam(theta, **params, decoupled=False)


def adamw(theta: Array, **params: Any):
    return _adam(theta, **params, decoupled=True)


def rmsprop(theta: Array, lr, alpha, eps, weight_decay, momentum, centered):
    v = a = b = np.zeros_like(theta)
    while True:
        g = gradient(theta) + weight_decay * theta
        v = alpha * v + (1 - alpha) * g**2
        a = alpha * a + (1 - alpha) * g
        b = momentum * b + g / (np.sqrt(v - a**2 if centered else v) + eps)
        theta = theta - lr * b
        yield theta


def adagrad(theta: Array, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    total = np.full_like(theta, initial_accumulator_value)
    for t in range(1, 1000):
        g = gradient(theta) + weight_decay * theta
        total = total + g**2
        theta = theta - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(total) + eps)
        yield theta


def adadelta(theta: Array, lr, rho, eps, weight_decay):
    v = u = np.zeros_like(theta)
    while True:
        g = gradient(theta) + weight_decay * theta
        v = rho * v + (1 - rho) * g**2
        d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d**2
        theta = theta - lr * d
        yield theta


def nadam(theta: Array, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay):
    m = v = np.zeros_like(theta)
    product = 1.0

    def mu(t: int) -> float:
        return betas[0] * (1 - 0.96 ** (t * momentum_decay) / 2)

    for t in range(1, 1000):
        g = gradient(theta) + (0 if decoupled_weight_decay else weight_decay * theta)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        product *= mu(t)
        ahead = (1 - mu(t)) * g / (1 - product) + mu(t + 1) * m / (1 - product * mu(t + 1))
        if decoupled_weight_decay:
            theta = theta - lr * weight_decay * theta
        theta = theta - lr * ahead / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield theta


def radam(theta: Array, lr, betas, eps, weight_decay, decoupled_weight_decay):
    m = v = np.zeros_like(theta)
    longest = 2 / (1 - betas[1]) - 1
    for t in range(1, 1000):
        g = gradient(theta) + (0 if decoupled_weight_decay else weight_decay * theta)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        length = longest - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
        step = m / (1 - betas[0] ** t)
        if length > 5:
            r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = step * np.sqrt(r) * np.sqrt(1 - betas[1] ** t) / (np.sqrt(v) + eps)
        if decoupled_weight_decay:
            theta = theta - lr * weight_decay * theta
        theta = theta - lr * step
        yield theta


def adamax(theta: Array, lr, betas, eps, weight_decay):
    m = u = np.zeros_like(theta)
    for t in range(1, 1000):
        g = gradient(theta) + weight_decay * theta
        m = betas[0] * m + (1 - betas[0]) * g
        u = np.maximum(betas[1] * u, np.abs(g) + eps)
        theta = theta - lr / (1 - betas[0] ** t) * m / u
        yield theta


def asgd(theta: Array, lr, lambd, alpha, weight_decay, **_: Any):
    for t in range(1, 1000):
        g = gradient(theta) + weight_decay * theta
        eta = lr / (1 + lambd * lr * (t - 1)) ** alpha
        theta = (1 - lambd * eta) * theta - eta * g
        yield theta


def rprop(theta: Array, lr, etas, step_sizes):
    step, last = np.full_like(theta, lr), np.zeros_like(theta)
    while True:
        g = gradient(theta)
        turned = g * last < 0
        step = np.clip(step * np.select([g * last > 0, turned], [etas[1], etas[0]], 1.0), *step_sizes)
        last = np.where(turned, 0, g)
        theta = theta - step * np.sign(last)
        yield theta


def adafactor(theta: Array, lr, beta2_decay, d, weight_decay):
    v = np.zeros_like(theta)
    for t in range(1, 1000):
        g = gradient(theta)
        size = min(lr, 1 / np.sqrt(t)) * max(1e-3, np.sqrt((theta**2).mean()))
        v = v + t**beta2_decay * (g**2 - v)
        u = g / np.sqrt(v)
        theta = (1 - lr * weight_decay) * theta - size * u / max(1, np.sqrt((u**2).mean()) / d)
        yield theta


def sparse_adam(theta: Array, lr, betas, eps):
    m = v = np.zeros_like(theta)
    for t in range(1, 1000):
        g = gradient(theta)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        theta = theta - lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (np.sqrt(v) + eps)
        yield theta


def lbfgs(theta: Array, lr, max_iter, history_size, **others: Any):
    """Without a line search: the first iteration along -g, shortened; then the two-loop direction."""
    assert others["line_search_fn"] is None
    pairs: list[tuple[Array, Array]] = []
    g = gradient(theta)
    first = True
    while True:
        for _ in range(max_iter):
            q = g.copy()
            alphas = []
            for s, y in reversed(pairs):
                alphas.append(s @ q / (y @ s))
                q = q - alphas[-1] * y
            if pairs:
                s, y = pairs[-1]
                q = q * (s @ y) / (y @ y)
            for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
                q = q + s * (alpha - y @ q / (y @ s))
            step = -q * lr * (min(1.0, 1 / np.abs(g).sum()) if first else 1.0)
            first = False
            theta, old = theta + step, g
            g = gradient(theta)
            pairs = [*pairs, (step, g - old)][-history_size:]
        yield theta


REFERENCES: dict[str, Callable[..., Any]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "nadam": nadam,
    "radam": radam,
    "adamax": adamax,
    "lbfgs": lbfgs,
    "asgd": asgd,
    "rprop": rprop,
    "adafactor": adafactor,
    "sparse_adam": sparse_adam,
}
_SHORT_MEMORY = {"lr": 0.05, "betas": [0.7, 0.8], "eps": 1e-3, "weight_decay": 0.1}
CASES: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {},
        {"lr": 0.03, "momentum": 0.9},
        {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
    ],
    "adam": [{}, _SHORT_MEMORY, {**_SHORT_MEMORY, "amsgrad": True}],
    "adamw": [{}, _SHORT_MEMORY, {**_SHORT_MEMORY, "amsgrad": True}],
    "rmsprop": [
        {},
        {"alpha": 0.8, "eps": 1e-3, "momentum": 0.6, "weight_decay": 0.1},
        {"alpha": 0.9, "centered": True, "momentum": 0.5, "lr": 0.02},
    ],
    "adagrad": [
        {},
        {"lr": 0.2, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-3},
    ],
    "adadelta": [{}, {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}],
    "nadam": [
        {},
        {**_SHORT_MEMORY, "momentum_decay": 0.5},
        {**_SHORT_MEMORY, "decoupled_weight_decay": True},
    ],
    "radam": [{}, _SHORT_MEMORY, {**_SHORT_MEMORY, "betas": [0.8, 0.95], "decoupled_weight_decay": True}],
    "adamax": [{}, _SHORT_MEMORY],
    "lbfgs": [{"line_search_fn": None, "lr": 0.5, "max_iter": 2, "max_eval": 9, "history_size": 3}],
    "asgd": [{}, {"lr": 0.1, "lambd": 0.3, "alpha": 0.6, "weight_decay": 0.1}],
    "rprop": [{}, {"lr": 0.2, "etas": [0.3, 1.5], "step_sizes": [0.05, 0.4]}],
    "adafactor": [{}, {"lr": 0.3, "beta2_decay": -0.5, "d": 2.0, "weight_decay": 0.1}],
    "sparse_adam": [{}, {"lr": 0.05, "betas": [0.7, 0.8], "eps": 1e-3}],
}
BY_NAME = {block.name: block for block in BLOCKS if str(block.target).startswith("torch.optim:")}
# Those of which torch has several implementations.
ELEMENTWISE = [name for name, block in BY_NAME.items() if IMPLEMENTATION in block.params]
IMPLEMENTATIONS = IMPLEMENTATION.choices


def full(block: Block, params: dict[str, Any]) -> dict[str, Any]:
    """Every parameter that the update itself has."""
    own = {param.name: params.get(param.name, param.default) for param in block.params}
    for param in (DECAY_NORM_AND_BIAS, IMPLEMENTATION):
        own.pop(param.name, None)
    return own


def closure_of(theta: torch.Tensor, opt: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = theta @ torch.tensor(CURVATURE) @ theta / 2 - torch.tensor(OFFSET) @ theta
        loss.backward()
        if type(opt) is torch.optim.SparseAdam:
            assert theta.grad is not None
            theta.grad = theta.grad.to_sparse()
        return loss.detach()

    return closure


def start() -> torch.Tensor:
    return torch.tensor(START, requires_grad=True)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """torch keeps NAdam's product of mu in the default dtype, not in that of the parameters."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_every_optimizer_has_a_reference_and_cases() -> None:
    assert set(REFERENCES) == set(CASES) == set(BY_NAME)


@pytest.mark.parametrize(
    ("name", "params"), [(name, case) for name, cases in CASES.items() for case in cases], ids=str
)
def test_update_is_the_papers(name: str, params: dict[str, Any]) -> None:
    theta = start()
    opt = optimizer(name, [theta], **params)
    wanted = REFERENCES[name](START, **full(BY_NAME[name], params))
    for t in range(STEPS):
        opt.step(closure_of(theta, opt))
        np.testing.assert_allclose(theta.detach(), next(wanted), rtol=1e-10, atol=1e-12, err_msg=f"step {t}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_implementations_agree(name: str, implementation: str) -> None:
    params = CASES[name][-1]
    target = BY_NAME[name].load()
    theta = start()
    if implementation == "fused" and "fused" not in inspect.signature(target).parameters:
        with pytest.raises(UserError, match=f"no fused {target.__name__}"):
            optimizer(name, [theta], implementation=implementation, **params)
        return
    opt = optimizer(name, [theta], implementation=implementation, **params)
    asked = {"fused": opt.defaults.get("fused"), "foreach": opt.defaults["foreach"]}
    if implementation in asked:
        assert asked[implementation] is True
    if implementation == "single":
        assert not any(asked.values())
    wanted = REFERENCES[name](START, **full(BY_NAME[name], params))
    for _ in range(STEPS):
        opt.step(closure_of(theta, opt))
        np.testing.assert_allclose(theta.detach(), next(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BY_NAME)
def test_defaults_are_torchs_or_say_what_torchs_are(name: str) -> None:
    block = BY_NAME[name]
    signature = inspect.signature(block.load())
    for param in block.params:
        if param not in (DECAY_NORM_AND_BIAS, IMPLEMENTATION):
            known = param.default if param.origin is SAME else param.origin
            assert signature.parameters[param.name].default == known, param.name


@pytest.mark.parametrize("name", BY_NAME)
def test_state_round_trip(name: str) -> None:
    params = CASES[name][-1]
    theta = start()
    opt = optimizer(name, [theta], **params)
    for _ in range(3):
        opt.step(closure_of(theta, opt))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    other = theta.detach().clone().requires_grad_()
    resumed = optimizer(name, [other], **params)
    resumed.load_state_dict(copy.deepcopy(torch.load(file, weights_only=True)))
    for _ in range(3):
        opt.step(closure_of(theta, opt))
        resumed.step(closure_of(other, resumed))
    assert torch.equal(theta, other)


def test_lbfgs_solves_a_quadratic_in_one_step() -> None:
    theta = start()
    opt = optimizer("lbfgs", [theta], tolerance_change=0.0)
    opt.step(closure_of(theta, opt))
    np.testing.assert_allclose(theta.detach(), np.linalg.solve(CURVATURE, OFFSET), atol=1e-7)
