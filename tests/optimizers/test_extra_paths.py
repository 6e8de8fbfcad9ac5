"""Optimisers of pytorch-optimizer whose first step says little: several steps in plain numpy, by their formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlblocks.optimizers import extra
from dlblocks.optimizers.build import optimizer
from dlblocks.registry import REGISTRY, names

Array = NDArray[np.float64]
BY_NAME = {block.name: block for block in extra.BLOCKS}
_random = np.random.default_rng(1)
WEIGHT = _random.normal(size=(4, 3))
GRADS = [0.5 * WEIGHT + _random.normal(size=(4, 3)) for _ in range(3)]
# What a training step returns, with a fall that the trend of the loss notices.
LOSSES = (1.0, 0.2, 0.1)
Path = Callable[[Array, list[Array]], Iterator[Array]]


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))


def _acc_sgd(theta: Array, grads: list[Array]) -> Iterator[Array]:
    lr, kappa, xi, constant = 1e-3, 1000.0, 10.0, 0.7
    a, b = constant**2 * xi / kappa, theta
    for g in grads:
        b = (1 - a) * b + a * (theta - lr * kappa / constant * g)
        theta = (constant * (theta - lr * g) + a * b) / (constant + a)
        yield theta


def _vsgd(theta: Array, grads: list[Array]) -> Iterator[Array]:
    lr, ratio, ps, tau1, tau2, eps = 0.1, 30.0, 1e-8, 0.81, 0.9, 1e-8
    m = np.zeros_like(theta)
    b, bh = np.full_like(theta, 2 * ps), np.full_like(theta, 2 * ps * ratio)
    for t, g in enumerate(grads, 1):
        count = 2 * ps + 1e-4 + (t > 1)
        s, h = b / count, bh / count
        before, m = m, (h * m + s * g) / (s + h)
        q = m**2 + s * h / (s + h)
        b = (1 - t**-tau1) * b + t**-tau1 * (2 * ps + q - 2 * m * before + before**2)
        bh = (1 - t**-tau2) * bh + t**-tau2 * (2 * ps * ratio + q - 2 * m * g + g**2)
        theta = theta - lr * m / (np.sqrt(q) + eps)
        yield theta


def _adalite(theta: Array, grads: list[Array]) -> Iterator[Array]:
    """One step: later ones start from the factors of this one's averages."""
    g = grads[0] * max(_norm(theta) / _norm(grads[0]), 1e-4)
    m = 0.1 * g
    v = 0.001 * (g - m) ** 2
    share = np.outer(*(np.exp(v.mean(axis)) / np.exp(v.mean(axis)).sum() for axis in (1, 0)))
    m = share * m + (1 - share) * g
    yield theta - 1e-3 * (0.9 * m + 0.1 * g) / np.sqrt(v / 0.001 + 1e-6)


def _rose(theta: Array, grads: list[Array]) -> Iterator[Array]:
    for g in grads:
        centred = g - g.mean(1, keepdims=True)
        r = abs(centred.max(1, keepdims=True)) - centred.min(1, keepdims=True)
        r = r + r.std() / (r.mean() + r.std()) * (r.mean() - r)
        theta = theta - 1e-3 * centred / r
        yield theta


def _aida(theta: Array, grads: list[Array]) -> Iterator[Array]:
    m = v = np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        p, q = g, m
        for _ in range(2):
            inner = (p * q).sum()
            p, q = inner / _norm(p) ** 2 * p, inner / _norm(q) ** 2 * q
        v = 0.999 * v + 0.001 * (q - p) ** 2 + 1e-8
        theta = theta - 1e-3 * m / (1 - 0.9**t) / ((np.sqrt(v) + 1e-8) / np.sqrt(1 - 0.999**t))
        yield theta


def _amos(theta: Array, grads: list[Array]) -> Iterator[Array]:
    lr, coef, s, v, b = 1e-3, 0.25, np.sqrt(2 / 3), 0.0, 0.0
    for t, g in enumerate(grads, 1):
        square = (g**2).mean()
        v = 0.999 * v + 0.001 * square
        corrected = v / (1 - 0.999**t)
        c = lr**2 * square / corrected / np.sqrt(1 + coef * np.sqrt(lr) * b)
        step = lr * s * g / np.sqrt(corrected) + c * theta / 2
        theta = theta - step / (1 + coef * np.sqrt(lr * s) * b)
        b = b + c * (1 + b)
        yield theta


def _apollo_dqn(theta: Array, grads: list[Array]) -> Iterator[Array]:
    m = d = b = np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        lr = 1e-5 + (1e-2 - 1e-5) * t / 500
        a, e = 0.1 / (1 - 0.9**t), g - m
        m = m + a * e
        size = (d**4).sum() ** 0.25 + 100 * 1e-4
        d = d / size
        b = b - (a * (e * d).sum() / size + (d**2 * b).sum()) * d**2
        d = m / np.maximum(abs(b), 0.01)
        theta = theta - lr * d
        yield theta


def _drives() -> Iterator[float]:
    fast = slow = LOSSES[0]
    for loss in LOSSES:
        fast, slow = 0.7 * fast + 0.3 * loss, 0.99 * slow + 0.01 * loss
        s = np.tanh((slow - fast) / slow)
        r = 1 - abs(s)
        yield 8 * r * (1 + 0.1 * np.sign(s) * r) if 0.25 < abs(s) < 0.5 else r if abs(s) > 0.75 else 1.0


def _emonavi(theta: Array, grads: list[Array]) -> Iterator[Array]:
    m = v = np.zeros_like(theta)
    for g, drive in zip(grads, _drives(), strict=True):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-3 * drive * m / (np.sqrt(v) + 1e-8)
        yield theta


def _emolynx(theta: Array, grads: list[Array]) -> Iterator[Array]:
    m = np.zeros_like(theta)
    for g, drive in zip(grads, _drives(), strict=True):
        theta = theta - 1e-3 * drive * np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
        yield theta


def _adam(lr: float, beta_2: float, of: Callable[[list[Array]], Iterator[Array]], eps: float = 1e-8) -> Path:
    """Adam on what `of` makes of the gradients."""

    def path(theta: Array, grads: list[Array]) -> Iterator[Array]:
        m = v = np.zeros_like(theta)
        for t, g in enumerate(of(grads), 1):
            m, v = 0.9 * m + 0.1 * g, beta_2 * v + (1 - beta_2) * g**2
            theta = theta - lr * m / (1 - 0.9**t) / (np.sqrt(v / (1 - beta_2**t)) + eps)
            yield theta

    return path


def _amplified(grads: list[Array]) -> Iterator[Array]:
    slow = grads[0]
    for g in grads:
        slow = 0.98 * slow + 0.02 * g
        yield g + 2.0 * slow


def _clipped_and_scaled(grads: list[Array]) -> Iterator[Array]:
    h = n = n2 = 0.0
    for t, g in enumerate(grads, 1):
        largest = abs(g).max()
        h = 0.999 * h + 0.001 * largest
        bound = h / (1 - 0.999**t)
        clipped = np.where(abs(g) > bound, g * bound / largest, g)
        n, n2 = 0.7 * n + 0.3 * _norm(clipped), 0.9 * n2 + 0.1 * _norm(clipped) ** 2
        yield clipped / _norm(clipped) * (n / (1 - 0.7**t)) / (np.sqrt(n2 / (1 - 0.9**t)) + 1e-8)


def _stable_adamw(theta: Array, grads: list[Array]) -> Iterator[Array]:
    m = v = np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        corrected = v / (1 - 0.99**t)
        r = 1e-3 / max(1.0, np.sqrt((g**2 / corrected).mean()))
        theta = theta - r * m / (1 - 0.9**t) / (np.sqrt(corrected) + 1e-8)
        yield theta


def _swats(theta: Array, grads: list[Array]) -> Iterator[Array]:
    """Before the switch."""
    m = v = np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-6)
        yield theta


def _d_adapt_adagrad(theta: Array, grads: list[Array]) -> Iterator[Array]:
    d, r, start, s, a = 1e-6, 0.0, theta, np.zeros_like(theta), np.full_like(theta, 1e-6)
    for g in grads:
        s, a = s + d * g, a + g**2
        r += d**2 * (g**2 / np.sqrt(a)).sum()
        d = max(d, ((s**2 / np.sqrt(a)).sum() - r) / abs(s).sum())
        yield start - s / np.sqrt(a)


def _sm3(theta: Array, grads: list[Array]) -> Iterator[Array]:
    rows, columns = np.zeros((4, 1)), np.zeros((1, 3))
    for g in grads:
        v = np.minimum(rows, columns) + g**2
        rows, columns = v.max(1, keepdims=True), v.max(0, keepdims=True)
        theta = theta - 0.1 * g / np.sqrt(v)
        yield theta


def _bases(left: Array, right: Array) -> tuple[Array, Array]:
    return np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]


def _soap(theta: Array, grads: list[Array]) -> Iterator[Array]:
    """The basis of the first gradient holds for the first ten steps."""
    m = v = np.zeros_like(theta)
    left, right = _bases(grads[0] @ grads[0].T, grads[0].T @ grads[0])
    yield theta
    for t, g in enumerate(grads[1:], 1):
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * (left.T @ g @ right) ** 2
        correction = 1 - 0.95**t
        step = left.T @ m @ right / correction / (np.sqrt(v / correction) + 1e-8)
        theta = theta - 3e-3 * left @ step @ right.T
        yield theta


def _splus(theta: Array, grads: list[Array]) -> Iterator[Array]:
    """No basis in the first step, then that of the first gradient for a hundred."""
    m, left, right = np.zeros_like(theta), np.eye(4), np.eye(3)
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        theta = theta - 0.1 * 2 / (4 + 3) * left @ np.sign(left.T @ m @ right) @ right.T
        if t == 1:
            left, right = _bases(g @ g.T, g.T @ g)
        yield theta


def _polar(x: Array) -> Array:
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def _dash(theta: Array, grads: list[Array]) -> Iterator[Array]:
    """One step, where L^(-1/4) g R^(-1/4) is U V' and adam's step is the sign."""
    yield theta - 1e-3 * _polar(grads[0]) * np.sqrt(12 / 3)


PATHS: dict[str, Path] = {
    "acc_sgd": _acc_sgd,
    "vsgd": _vsgd,
    "adalite": _adalite,
    "rose": _rose,
    "aida": _aida,
    "amos": _amos,
    "apollo_dqn": _apollo_dqn,
    "emonavi": _emonavi,
    "emolynx": _emolynx,
    "flash_adamw": _adam(1e-3, 0.999, iter),
    "grokfast_adamw": _adam(1e-4 / 3, 0.99, _amplified, eps=0.0),
    "stable_adamw": _stable_adamw,
    "stable_spam": _adam(1e-3, 0.999, _clipped_and_scaled),
    "swats": _swats,
    "d_adapt_adagrad": _d_adapt_adagrad,
    "sm3": _sm3,
    "soap": _soap,
    "splus": _splus,
    "dash": _dash,
}
# Relative: averages of 8 bits, an eps of another place, inverse roots by Newton's method, bases in float32.
LOOSE = {"flash_adamw": 2e-2, "dash": 1e-2, "splus": 1e-5}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _run(name: str, grads: list[Array], weight: Array = WEIGHT, **params: float) -> list[Array]:
    """Theta after each step."""
    theta = torch.tensor(weight, requires_grad=True)
    if any(param.name == "weight_decay" for param in BY_NAME[name].params):
        params.setdefault("weight_decay", 0.0)
    opt = optimizer(name, [theta], **params)
    if BY_NAME[name].tags.get("switches"):
        opt.train()  # type: ignore[attr-defined]
    after = []
    for g, loss in zip(grads, LOSSES, strict=False):
        theta.grad = torch.tensor(g)
        opt.step(lambda loss=loss: torch.tensor(loss))
        after.append(theta.detach().numpy().copy())
    return after


@pytest.mark.parametrize("name", PATHS)
def test_steps_are_the_formulas(name: str) -> None:
    got = _run(name, GRADS)
    wanted = list(PATHS[name](WEIGHT, GRADS))
    for before, theta, reference in zip([WEIGHT, *got], got, wanted, strict=False):
        step = abs(reference - before).max()
        assert abs(theta - reference).max() <= LOOSE.get(name, 1e-6) * step + 1e-14


def test_scion_steps_by_the_polar_factor_of_a_matrix_and_the_root_mean_square_of_a_vector() -> None:
    u, _, v = np.linalg.svd(GRADS[0], full_matrices=False)
    step = (WEIGHT - _run("scion", GRADS[:1])[0]) / 1e-3
    singular = u.T @ step @ v.T / np.sqrt(4 / 3)
    np.testing.assert_allclose(singular - np.diag(np.diag(singular)), 0, atol=0.02)
    assert ((np.diag(singular) > 0.65) & (np.diag(singular) < 1.25)).all()
    theta = torch.zeros(3, requires_grad=True)
    opt = optimizer("scion", [theta])
    theta.grad = torch.tensor([3.0, -4.0, 0.0])
    opt.step()
    np.testing.assert_allclose(-theta.detach() / 1e-3, np.array([3, -4, 0]) / np.sqrt(25 / 3), rtol=1e-6)


def test_swats_goes_on_as_sgd_of_the_rate_it_found() -> None:
    """On a constant gradient of one size adam's step is lr sign(g), as that of SGD with the rate lr / |g|."""
    theta = torch.tensor(WEIGHT, requires_grad=True)
    opt = optimizer("swats", [theta])
    for _ in range(2):
        theta.grad = torch.full((4, 3), 50.0)
        opt.step()
    assert opt.param_groups[0]["phase"] == "sgd"
    rate = opt.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-3 / 50, rel=1e-3)
    buffer = 0.0
    for g in (1.0, -2.0):
        before = theta.detach().clone()
        theta.grad = torch.full((4, 3), g)
        opt.step()
        buffer = 0.9 * buffer + g
        torch.testing.assert_close(before - theta.detach(), torch.full((4, 3), rate * 0.1 * buffer))


def test_alice_steps_in_its_basis_where_no_row_is_outside() -> None:
    grad = GRADS[0].T.copy()
    basis = np.linalg.eigh(grad @ grad.T)[1]
    inside = basis.T @ grad
    (after,) = _run("alice", [grad], WEIGHT.T)
    step = 0.02 * 0.3 * basis @ (0.1 * inside / (np.sqrt(0.1 * inside**2) + 1e-8))
    np.testing.assert_allclose(WEIGHT.T - after, step, rtol=1e-4)


def test_alice_takes_the_first_rows_for_its_first_subspace() -> None:
    step = WEIGHT - _run("alice", GRADS[:1], rank=2, leading_basis=2, alpha_c=0.0)[0]
    assert (step[:2] != 0).all()
    assert (step[2:] == 0).all()


@pytest.mark.parametrize("name", names("optimizer"))
def test_every_optimizer_has_a_formula_and_a_source(name: str) -> None:
    block = REGISTRY.get("optimizer", name)
    assert block.formula
    assert block.source
