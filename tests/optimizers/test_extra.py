"""The optimisers of pytorch-optimizer: first steps by their papers' formulas, states, groups, what is left out."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from numpy.typing import NDArray
from pytorch_optimizer.optimizer import OPTIMIZERS
from torch import Tensor, nn

from dlblocks.errors import MissingPackageError, UserError
from dlblocks.optimizers import extra, own_wrappers
from dlblocks.optimizers.build import optimizer
from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS

Array = NDArray[np.float64]
BY_NAME = {block.name: block for block in extra.BLOCKS}
_random = np.random.default_rng(0)
# A gradient that is not at right angles to the weights, where some optimisers project.
WEIGHT = _random.normal(size=(4, 3))
GRAD = 0.5 * WEIGHT + 0.3 * _random.normal(size=(4, 3))
GRAD += 0.1 * np.sign(GRAD)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))


def _adabelief(g: Array, w: Array) -> Array:  # noqa: ARG001
    return g / np.sqrt((0.9 * g) ** 2)


def _acc_sgd(g: Array, w: Array) -> Array:  # noqa: ARG001
    """With beta = 0.7^2 xi / kappa: (0.7 * short step + beta * long step) / (0.7 + beta)."""
    beta = 0.7**2 * 10 / 1000
    return (0.7 + beta * beta * 1000 / 0.7) / (0.7 + beta) * g


# The first step from the papers' formulas at the default parameters, without decay, for lr = 1.
FIRST_STEP: dict[str, Callable[[Array, Array], Array]] = {
    # What momentum has is the gradient.
    **dict.fromkeys(
        ("sgdw", "sgdp", "qhm", "aggmo", "pid", "adai", "msvag", "schedule_free_sgd"),
        lambda g, w: g,  # noqa: ARG005
    ),
    "acc_sgd": _acc_sgd,
    "pnm": lambda g, w: 2 * (1 - 0.9**2) * g / np.sqrt(2**2 + 1**2),  # noqa: ARG005
    # What is divided by its own root mean square is its sign.
    **dict.fromkeys(
        (
            "signum",
            "tiger",
            "lion",
            "ano",
            "bcos",
            "adabound",
            "adamp",
            "adams",
            "adamc",
            "adan",
            "adanorm",
            "emolynx",
            "flash_adamw",
            "grams",
            "laprop",
            "qhadam",
            "stable_adamw",
            "spam",
            "stable_spam",
            "swats",
            "adagc",
            "ftrl",
            "schedule_free_adamw",
            "sm3",
        ),
        lambda g, w: np.sign(g),  # noqa: ARG005
    ),
    "ademamix": lambda g, w: np.sign(g) * (1 + 5 * 1e-4),  # noqa: ARG005
    "adapnm": lambda g, w: np.sign(g) * 2 * (1 - 0.9**2) / np.sqrt(5) / (1 - 0.9),  # noqa: ARG005
    "adabelief": _adabelief,
    "adamod": lambda g, w: np.sign(g) * 1e-4,  # noqa: ARG005
    "adatam": lambda g, w: np.sign(g) * 0.5 / np.sqrt(1e-3),  # noqa: ARG005
    "emonavi": lambda g, w: np.sign(g) * 0.1 / np.sqrt(1e-3),  # noqa: ARG005
    "fadam": lambda g, w: np.sign(g) * 0.1,  # noqa: ARG005
    "diffgrad": lambda g, w: np.sign(g) / (1 + np.exp(-abs(g))),  # noqa: ARG005
    "kate": lambda g, w: 1 / g,  # noqa: ARG005
    "padam": lambda g, w: np.sqrt(1e-3) / 0.1 * 0.1 * g / np.sqrt(1e-3 * g**2) ** 0.5,  # noqa: ARG005
    "yogi": lambda g, w: g / (np.sqrt((1e-6 + 1e-3 * g**2) / 1e-3) + 1e-3),  # noqa: ARG005
    "novograd": lambda g, w: g / _norm(g),  # noqa: ARG005
    "lars": lambda g, w: 1e-3 * _norm(w) / _norm(g) * g,
    # The first step only sets what later ones divide by.
    **dict.fromkeys(("avagrad", "soap", "schedule_free_radam"), lambda g, w: 0 * g),  # noqa: ARG005
}
# Averages of 8 bits, and an eps that is not small beside this gradient.
LOOSE = {
    "flash_adamw": 1e-2,
    "bcos": 1e-2,
    "swats": 1e-3,
    "spam": 1e-3,
    "adanorm": 1e-4,
    "yogi": 1e-4,
    "fadam": 3e-3,
}
# It keeps its averages in float32, and then takes no other parameters.
FLOAT32 = ("fadam",)
# Those that need the graph of the gradient have a test of their own.
SECOND_ORDER = [block.name for block in extra.BLOCKS if block.tags.get("second_order")]
FIRST_ORDER = [block.name for block in extra.BLOCKS if not block.tags.get("second_order")]
# Steps that are not along the gradient: Nero brings each neuron's weights to mean 0 and norm 1.
NOT_DOWNHILL = ("nero",)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def start(value: Array = WEIGHT) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def steps(name: str, n: int, grad: Array = GRAD, **params: Any) -> tuple[list[Array], float]:
    """The steps on a constant gradient, and lr."""
    dtype = torch.float32 if name in FLOAT32 else torch.float64
    theta = torch.tensor(WEIGHT, dtype=dtype, requires_grad=True)
    if any(param.name == "weight_decay" for param in BY_NAME[name].params):
        params.setdefault("weight_decay", 0.0)
    torch.manual_seed(0)
    opt = optimizer(name, [theta], **params)
    taken = []
    if BY_NAME[name].tags.get("switches"):
        opt.train()  # type: ignore[attr-defined]
    for _ in range(n):
        theta.grad = torch.tensor(grad, dtype=dtype)
        before = theta.detach().clone()
        opt.step(lambda: torch.tensor(1.0))
        taken.append((before - theta.detach()).numpy())
    return taken, opt.param_groups[0]["lr"]


# What goes around another optimizer there -> ours.
WRAPPERS = {
    "SAM": "sam",
    "GSAM": "gsam",
    "WSAM": "wsam",
    "LookSAM": "looksam",
    "FriendlySAM": "friendly_sam",
    "Lookahead": "lookahead",
    "OrthoGrad": "orthograd",
    "TRAC": "trac",
}


def test_every_class_of_the_package_is_a_block_or_left_out_with_a_reason() -> None:
    """Those of its list, and those that it only exports."""
    exported = {
        value
        for value in vars(pytorch_optimizer).values()
        if isinstance(value, type) and value.__module__.startswith("pytorch_optimizer.optimizer.")
    }
    steps = {cls.__name__ for cls in exported if hasattr(cls, "step")}
    classes = {cls.__name__ for cls in OPTIMIZERS.values()} | steps
    wrapped = {block.load().__name__ for block in extra.BLOCKS} | set(WRAPPERS)
    assert wrapped.isdisjoint(extra.LEFT_OUT)
    assert wrapped | set(extra.LEFT_OUT) == classes
    assert set(WRAPPERS.values()) < {block.name for block in own_wrappers.BLOCKS}


@pytest.mark.parametrize("name", BY_NAME)
def test_parameters_and_defaults_are_the_packages(name: str) -> None:
    signature = inspect.signature(BY_NAME[name].load()).parameters
    for param in BY_NAME[name].params:
        if param != DECAY_NORM_AND_BIAS:
            assert signature[param.name].default == param.default, param.name


@pytest.mark.parametrize("name", FIRST_STEP)
def test_first_step_is_the_papers(name: str) -> None:
    (step,), lr = steps(name, 1)
    tolerance = LOOSE.get(name, 1e-5)
    np.testing.assert_allclose(step / lr, FIRST_STEP[name](GRAD, WEIGHT), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in FIRST_ORDER if name not in NOT_DOWNHILL])
def test_steps_lead_downhill(name: str) -> None:
    taken, _ = steps(name, 12)
    assert all(np.isfinite(step).all() for step in taken)
    assert (sum(taken) * GRAD).sum() > 0


@pytest.mark.parametrize("name", [name for name in FIRST_ORDER if BY_NAME[name].tags["elementwise"]])
def test_elementwise_as_the_tag_says(name: str) -> None:
    other = GRAD.copy()
    other[0, 0] *= -3
    first, _ = steps(name, 6)
    second, _ = steps(name, 6, other)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.ravel()[1:], b.ravel()[1:])


@pytest.mark.parametrize("name", [name for name in FIRST_ORDER if BY_NAME[name].tags["linear_in_lr"]])
def test_linear_in_lr_as_the_tag_says(name: str) -> None:
    """In the first step that moves, where the path can't have parted yet."""
    lr = BY_NAME[name].defaults()["lr"]
    first, second = (steps(name, 2, lr=rate)[0] for rate in (lr, lr / 2))
    index = 0 if np.any(first[0]) else 1
    np.testing.assert_allclose(second[index] * 2, first[index], rtol=LOOSE.get(name, 1e-5), atol=1e-12)


@pytest.mark.parametrize("name", [name for name in FIRST_ORDER if "kind_of_decay" in BY_NAME[name].tags])
def test_kind_of_decay(name: str) -> None:
    """Decoupled decay takes the same share of every weight beside the step; l2 decay is part of the gradient."""
    # The gradient leads away from zero, the decay towards it: added to the gradient it turns the step.
    without, decayed = (steps(name, 1, -GRAD, lr=1e-5, weight_decay=decay)[0][0] for decay in (0.0, 0.9))
    # Focus pulls theta to where it was before the decay; a first step that only sets the state tells nothing.
    if name == "focus" or not np.any(without):
        return
    share = (decayed - without) / WEIGHT
    same = np.allclose(share, share[0, 0], rtol=1e-2, atol=0) and share[0, 0] > 0
    # Of plain gradient descent the two are one.
    if np.allclose(without / GRAD, (without / GRAD)[0, 0], rtol=1e-3, atol=0) and name != "lars":
        assert same
    else:
        assert same == (BY_NAME[name].tags["kind_of_decay"] == "decoupled")


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_second_order_steps_are_measured_by_the_curvature(name: str) -> None:
    """Of a diagonal quadratic random signs give the Hessian's diagonal exactly: the first step is Newton's."""
    curvature, theta = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    opt = optimizer(name, [theta], lr=0.1, hessian_distribution="rademacher")
    (curvature * theta**2 / 2).sum().backward(create_graph=True)
    before = theta.detach().clone()
    opt.step()
    step = (before - theta.detach()) / 0.1
    if name == "adahessian":
        torch.testing.assert_close(step, before)
    else:  # sophia's is momentum over curvature, clipped
        torch.testing.assert_close(step, (0.04 * before / 0.01).clamp(-0.01, 0.01))


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_second_order_without_a_graph_is_told(name: str) -> None:
    """With and without a closure; only in the steps that measure the curvature."""
    theta = torch.ones(3, requires_grad=True)
    opt = optimizer(name, [theta], update_period=2)

    def closure(graph: bool = False) -> Tensor:
        opt.zero_grad()
        loss = theta.square().sum()
        loss.backward(create_graph=graph)
        return loss

    closure()
    for step in (opt.step, lambda: opt.step(closure), lambda: opt.step(closure=closure)):
        with pytest.raises(UserError, match=rf"optimizer={name}: .* loss.backward\(create_graph=True\)"):
            step()
    opt.step(lambda: closure(True))
    opt.step(closure)
    with pytest.raises(UserError, match="create_graph"):
        opt.step(closure)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("name", BY_NAME)
def test_trains_a_net_and_resumes_from_a_state_loaded_without_running_code(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = torch.randn(32, 3), torch.randn(32, 2)
    copy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def train(net: nn.Module, opt: torch.optim.Optimizer, n: int) -> None:
        def closure() -> Tensor:
            opt.zero_grad()
            loss = nn.functional.mse_loss(net(x), y)
            loss.backward(create_graph=name in SECOND_ORDER)
            return loss.detach()

        for _ in range(n):
            opt.step(closure)

    opt = optimizer(name, net)
    if BY_NAME[name].tags.get("switches"):
        opt.train()  # type: ignore[attr-defined]
    train(net, opt, 4)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "rng": torch.get_rng_state()}, file)
    train(net, opt, 3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    copy.load_state_dict(saved["net"])
    resumed = optimizer(name, copy)
    resumed.load_state_dict(saved["opt"])
    torch.set_rng_state(saved["rng"])
    train(copy, resumed, 3)
    for wanted, got in zip(net.parameters(), copy.parameters(), strict=True):
        assert torch.isfinite(got).all()
        assert torch.equal(wanted, got)


def test_matrices_are_told_from_the_rest() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    opt = optimizer("adamuon", net)
    flags = {group["use_muon"]: [p.ndim for p in group["params"]] for group in opt.param_groups}
    assert flags == {True: [4, 2], False: [1, 1]}
    given = optimizer("adamuon", [{"params": list(net.parameters()), "use_muon": False}])
    assert [group["use_muon"] for group in given.param_groups] == [False]
    named = optimizer("adamuon", net.named_parameters())
    assert [len(group["params"]) for group in named.param_groups] == [2, 2]


def test_without_the_package_the_message_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingPackageError, match=r"optimizer 'lion' .*: pip install 'pytorch-optimizer>="):
        optimizer("lion", [start()])
