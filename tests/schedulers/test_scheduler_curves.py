"""Each scheduler against its closed formula, at every step of a run and beyond its end."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from dlblocks.errors import UserError
from dlblocks.records import SAME
from dlblocks.schedulers import BLOCKS
from dlblocks.schedulers.build import scheduler
from dlblocks.schedulers.curves import warmup_steps

RATES = (0.4, 0.1)
TOTAL = 40
BEYOND = 5
METRIC = [math.exp(-t / 5) + (0.3 if t > 8 else 0.0) + 0.01 * (t % 3) for t in range(TOTAL + BEYOND)]

Factor = Callable[..., float]


def constant(t: int) -> float:  # noqa: ARG001
    return 1.0


def step(t: int, step_size: int, gamma: float) -> float:
    return gamma ** (t // step_size)


def multistep(t: int, milestones: tuple[int, ...], gamma: float) -> float:
    return gamma ** sum(t >= milestone for milestone in milestones)


def exponential(t: int, gamma: float) -> float:
    return gamma**t


def cosine(t: int, min_lr_ratio: float, total: int = TOTAL) -> float:
    if t >= total:
        return min_lr_ratio
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * t / total))


def one_cycle(
    t: int, pct_start: float, div_factor: float, final_div_factor: float, anneal_strategy: str, **_: Any
) -> float:
    def between(a: float, b: float, p: float) -> float:
        return b + (a - b) / 2 * (1 + math.cos(math.pi * p)) if anneal_strategy == "cos" else a + (b - a) * p

    low, lowest, peak_at = 1 / div_factor, 1 / div_factor / final_div_factor, pct_start * TOTAL - 1
    if t < peak_at:
        return between(low, 1.0, t / peak_at)
    if t >= TOTAL - 1:
        return 1.0 if pct_start == 1 else lowest
    return between(1.0, lowest, (t - max(peak_at, 0)) / (TOTAL - 1 - max(peak_at, 0)))


def linear_warmup(t: int, warmup: float, start_factor: float) -> float:
    steps = int(warmup) if warmup >= 1 else round(warmup * TOTAL)
    return start_factor + (1 - start_factor) * min(t, TOTAL) / steps if min(t, TOTAL) < steps else 1.0


def warmup_cosine(t: int, warmup: float, start_factor: float, min_lr_ratio: float) -> float:
    steps = int(warmup) if warmup >= 1 else round(warmup * TOTAL)
    if min(t, TOTAL) < steps:
        return linear_warmup(t, warmup, start_factor)
    return cosine(t - steps, min_lr_ratio, TOTAL - steps)


def reduce_on_plateau(
    t: int, factor, patience, threshold, threshold_mode, cooldown, min_lr, **_: Any
) -> float:
    """Only with min_lr = 0: the falls before t."""
    assert min_lr == 0
    best, bad, waiting, falls = math.inf, 0, 0, 0
    for value in METRIC[:t]:
        bound = best * (1 - threshold) if threshold_mode == "rel" else best - threshold
        best, bad = (value, 0) if value < bound else (best, bad + 1)
        if waiting:
            waiting, bad = waiting - 1, 0
        if bad > patience:
            falls, bad, waiting = falls + 1, 0, cooldown
    return factor**falls


def polynomial(t: int, power: float, min_lr_ratio: float) -> float:
    return min_lr_ratio + (1 - min_lr_ratio) * max(1 - t / TOTAL, 0) ** power


def inverse_time(t: int, decay_rate: float) -> float:
    return 1 / (1 + decay_rate * t)


def inverse_sqrt(t: int, warmup: float) -> float:
    steps = max(int(warmup) if warmup >= 1 else round(warmup * TOTAL), 1)
    return min((t + 1) / steps, math.sqrt(steps / (t + 1)))


def cosine_restarts(t: int, cycles: int, growth: float, peak_decay: float, min_lr_ratio: float) -> float:
    begin, length = 0.0, TOTAL / sum(growth**i for i in range(cycles))
    for i in range(cycles):
        first, last = round(begin), round(begin + length)
        if first <= t < last:
            return min_lr_ratio + (peak_decay**i - min_lr_ratio) * cosine(t - first, 0.0, last - first)
        begin, length = begin + length, length * growth
    return min_lr_ratio


def cyclic(t: int, cycles: int, base_factor: float, shape: str, gamma: float) -> float:
    if t >= TOTAL:
        return base_factor
    half = TOTAL / cycles / 2
    cycle = math.floor(t / (2 * half) + 1e-9)
    away = abs(t / half - 2 * cycle - 1)
    height = {"triangular": 1, "triangular2": 2.0**-cycle, "exp_range": gamma**t}[shape]
    return base_factor + (1 - base_factor) * (1 - away) * height


def chebyshev(t: int, condition: float) -> float:
    """The order by reversing bits: place 2 k + b of 2 n is place k of n, mirrored if b."""
    if t >= TOTAL:
        return 1.0

    def place(i: int, n: int) -> int:
        if n == 1:
            return 0
        k = place(i // 2, n // 2)
        return n - 1 - k if i % 2 else k

    order = [p for p in (place(i, 64) for i in range(64)) if p < TOTAL]
    low, high = 1 / condition, 1.0
    return 1 / ((high + low) / 2 - (high - low) / 2 * math.cos(math.pi * (order[t] + 0.5) / TOTAL))


def piecewise(t: int, points: tuple[float, ...], factors: tuple[float, ...], interpolation: str) -> float:
    places = [0.0, *(point * TOTAL for point in points), math.inf]
    heights = [1.0, *factors, factors[-1]]
    i = max(i for i, place in enumerate(places) if place <= t)
    if interpolation == "step" or heights[i] == heights[i + 1]:
        return heights[i]
    q = (t - places[i]) / (places[i + 1] - places[i])
    q = (1 - math.cos(math.pi * q)) / 2 if interpolation == "cosine" else q
    return heights[i] + (heights[i + 1] - heights[i]) * q


def _warmed(t: int, warmup: float, start_factor: float, fall: Callable[[float], float]) -> float:
    steps = int(warmup) if warmup >= 1 else round(warmup * TOTAL)
    if min(t, TOTAL) < steps:
        return linear_warmup(t, warmup, start_factor)
    return fall(min((t - steps) / (TOTAL - steps), 1.0) if steps < TOTAL else 0.0)


def warmup_polynomial(t: int, warmup: float, start_factor: float, power: float, min_lr_ratio: float) -> float:
    return _warmed(t, warmup, start_factor, lambda p: min_lr_ratio + (1 - min_lr_ratio) * (1 - p) ** power)


def warmup_exponential(t: int, warmup: float, start_factor: float, final_factor: float) -> float:
    return _warmed(t, warmup, start_factor, lambda p: final_factor**p)


def tanh(t: int, lower: float, upper: float, min_lr_ratio: float) -> float:
    p = min(t / TOTAL, 1)
    return min_lr_ratio + (1 - min_lr_ratio) / (1 + math.exp(2 * (lower + (upper - lower) * p)))


def constant_factor(t: int, factor: float, total_iters: int) -> float:
    return factor if t < total_iters else 1.0


def linear_factor(t: int, start_factor: float, end_factor: float, total_iters: int) -> float:
    share = min(t, total_iters) / total_iters
    return (1 - share) * start_factor + share * end_factor


def warmup_stable_decay(t: int, warmup: float, decay: float, min_lr_ratio: float, shape: str) -> float:
    steps = int(warmup) if warmup >= 1 else round(warmup * TOTAL)
    rising = (t + 1) / steps if t < steps else 1.0
    last = TOTAL * decay
    over = 1 - min(max(TOTAL - t, 0) / last, 1)
    height = {
        "linear": 1 - over,
        "sqrt": 1 - over**0.5,
        "square": 1 - over**2,
        "cosine": (1 + math.cos(math.pi * over)) / 2,
    }[shape]
    return rising * (min_lr_ratio + (1 - min_lr_ratio) * height)


def flat_cosine(t: int, pct_start: float, min_lr_ratio: float) -> float:
    flat = pct_start * TOTAL
    return 1.0 if t < flat else cosine(t - flat, min_lr_ratio, TOTAL - flat)


def rex(t: int, min_lr_ratio: float) -> float:
    p = min(t / TOTAL, 1)
    return min_lr_ratio + (1 - min_lr_ratio) * (1 - p) / (1 - p / 2)


FORMULAS: dict[str, Factor] = {
    "cyclic": cyclic,
    "chebyshev": chebyshev,
    "piecewise": piecewise,
    "warmup_polynomial": warmup_polynomial,
    "warmup_exponential": warmup_exponential,
    "tanh": tanh,
    "constant_factor": constant_factor,
    "linear_factor": linear_factor,
    "polynomial": polynomial,
    "inverse_time": inverse_time,
    "inverse_sqrt": inverse_sqrt,
    "cosine_restarts": cosine_restarts,
    "warmup_stable_decay": warmup_stable_decay,
    "flat_cosine": flat_cosine,
    "rex": rex,
    "constant": constant,
    "step": step,
    "multistep": multistep,
    "exponential": exponential,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "linear_warmup": linear_warmup,
    "warmup_cosine": warmup_cosine,
    "reduce_on_plateau": reduce_on_plateau,
}
CASES: dict[str, list[dict[str, Any]]] = {
    "polynomial": [{}, {"power": 2.0, "min_lr_ratio": 0.1}],
    "inverse_time": [{}, {"decay_rate": 0.7}],
    "inverse_sqrt": [{}, {"warmup": 7}, {"warmup": 0}],
    "cosine_restarts": [
        {},
        {"cycles": 1, "min_lr_ratio": 0.2},
        {"cycles": 5},
        {"cycles": 3, "growth": 2.0, "peak_decay": 0.5, "min_lr_ratio": 0.1},
    ],
    "cyclic": [
        {},
        {"cycles": 1, "base_factor": 0.0},
        {"cycles": 3, "shape": "triangular2"},
        {"shape": "exp_range", "gamma": 0.9},
    ],
    "chebyshev": [{}, {"condition": 3.0}],
    "piecewise": [
        {},
        {"interpolation": "cosine"},
        {"points": [0.5, 1.0], "factors": [2.0, 0.0], "interpolation": "step"},
    ],
    "warmup_polynomial": [
        {},
        {"warmup": 7, "power": 2.0, "min_lr_ratio": 0.1},
        {"warmup": 0},
        {"warmup": 60},
    ],
    "warmup_exponential": [{}, {"warmup": 7, "final_factor": 0.5, "start_factor": 0.3}],
    "tanh": [{}, {"lower": -4.0, "upper": 4.0, "min_lr_ratio": 0.1}],
    "constant_factor": [{}, {"factor": 0.5, "total_iters": 9}],
    "linear_factor": [{}, {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 12}],
    "warmup_stable_decay": [
        {},
        {"warmup": 0, "decay": 1.0, "min_lr_ratio": 0.1},
        {"warmup": 6, "decay": 0.5},
        {"shape": "sqrt"},
        {"shape": "square", "min_lr_ratio": 0.1},
        {"shape": "cosine", "decay": 0.6},
    ],
    "flat_cosine": [{}, {"pct_start": 0.0}, {"pct_start": 0.5, "min_lr_ratio": 0.3}],
    "rex": [{}, {"min_lr_ratio": 0.1}],
    "constant": [{}],
    "step": [{}, {"step_size": 7, "gamma": 0.5}],
    "multistep": [{}, {"milestones": [3, 4, 20], "gamma": 0.5}],
    "exponential": [{}, {"gamma": 0.8}],
    "cosine": [{}, {"min_lr_ratio": 0.1}],
    "one_cycle": [
        {},
        {"pct_start": 0.2, "div_factor": 10.0, "final_div_factor": 20.0, "anneal_strategy": "linear"},
        {"pct_start": 0.0},
        {"pct_start": 1 / TOTAL},
        {"pct_start": 1.0},
    ],
    "linear_warmup": [{}, {"warmup": 0}, {"warmup": 1}, {"warmup": 13, "start_factor": 0.0}, {"warmup": 60}],
    "warmup_cosine": [{}, {"warmup": 0.3, "min_lr_ratio": 0.2}, {"warmup": 7}, {"warmup": 0}, {"warmup": 39}],
    "reduce_on_plateau": [
        {},
        {"factor": 0.5, "patience": 1, "cooldown": 2, "threshold": 0.02, "threshold_mode": "abs"},
        {"factor": 0.3, "patience": 0, "eps": 0.0},
    ],
}
BY_NAME = {block.name: block for block in BLOCKS}


def make_optimizer(**params: Any) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in RATES]
    return torch.optim.SGD(groups, **params)


def make(name: str, opt: torch.optim.Optimizer, total: int = TOTAL, **params: Any) -> LRScheduler:
    return scheduler(name, opt, total_steps=total if BY_NAME[name].tags["needs_total"] else None, **params)


def advance(sched: LRScheduler, opt: torch.optim.Optimizer, t: int) -> None:
    opt.step()
    if isinstance(sched, ReduceLROnPlateau):
        sched.step(METRIC[t])
    else:
        sched.step()


def rates(opt: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in opt.param_groups]


def test_every_scheduler_has_a_formula_and_cases() -> None:
    assert set(FORMULAS) == set(CASES) == set(BY_NAME)


@pytest.mark.parametrize(
    ("name", "params"), [(name, case) for name, cases in CASES.items() for case in cases], ids=str
)
def test_rate_is_the_formulas(name: str, params: dict[str, Any]) -> None:
    opt = make_optimizer()
    sched = make(name, opt, **params)
    all_params = {param.name: params.get(param.name, param.default) for param in BY_NAME[name].params}
    for t in range(TOTAL + BEYOND):
        wanted = [lr * FORMULAS[name](t, **all_params) for lr in RATES]
        assert rates(opt) == pytest.approx(wanted, rel=1e-12, abs=1e-16), t
        assert sched.get_last_lr() == rates(opt)
        advance(sched, opt, t)


@pytest.mark.parametrize(("name", "params"), [("cosine", {}), ("warmup_cosine", {"start_factor": 1.0})])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_floor_is_met_after_the_last_step_and_not_before(
    name: str, params: dict[str, float], total: int
) -> None:
    opt = make_optimizer()
    sched = make(name, opt, total, min_lr_ratio=0.25, **params)
    for t in range(total):
        assert rates(opt)[0] > 0.1
        advance(sched, opt, t)
    assert rates(opt) == [0.1, 0.025]


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("momentum", [{}, {"base_momentum": 0.6, "max_momentum": 0.8}])
def test_one_cycle_is_torchs_with_the_rate_as_its_peak(strategy: str, momentum: dict[str, float]) -> None:
    ours, torchs = make_optimizer(momentum=0.9), make_optimizer(momentum=0.9)
    a = make("one_cycle", ours, anneal_strategy=strategy, cycle_momentum=True, **momentum)
    b = OneCycleLR(torchs, list(RATES), TOTAL, anneal_strategy=strategy, **momentum)
    for t in range(TOTAL - 1):
        assert rates(ours) == pytest.approx(rates(torchs), rel=1e-12)
        assert [group["momentum"] for group in ours.param_groups] == pytest.approx(
            [group["momentum"] for group in torchs.param_groups], rel=1e-12
        )
        advance(a, ours, t)
        advance(b, torchs, t)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("total", [2, 7, 100])
def test_one_cycle_ends_exactly(strategy: str, total: int) -> None:
    opt = make_optimizer()
    sched = make("one_cycle", opt, total, anneal_strategy=strategy)
    for t in range(total - 1):
        advance(sched, opt, t)
    assert rates(opt) == [lr * (1 / 25 / 1e4) for lr in RATES]


def test_one_cycle_moves_beta_1_only_if_asked() -> None:
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    make("one_cycle", adam)
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)
    make("one_cycle", adam, cycle_momentum=True)
    assert adam.param_groups[0]["betas"] == (0.95, 0.999)


def test_warmup_below_one_is_a_share_and_from_one_a_number() -> None:
    assert [warmup_steps(w, 50) for w in (0, 0.1, 0.999, 1, 1.0, 20, 80)] == [0, 5, 50, 1, 1, 20, 80]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("name", BY_NAME)
def test_resumed_run_equals_the_undisturbed(name: str, data: st.DataObject) -> None:
    # Cycles need a step each.
    total = data.draw(st.integers(9 if name == "cosine_restarts" else 1, TOTAL))
    stop = data.draw(st.integers(0, total + BEYOND - 1))
    params = data.draw(st.sampled_from(CASES[name]))
    if name == "one_cycle":
        params = {**params, "cycle_momentum": data.draw(st.booleans())}
    opt = make_optimizer()
    sched = make(name, opt, total, **params)
    for t in range(stop):
        advance(sched, opt, t)
    file = io.BytesIO()
    torch.save((opt.state_dict(), sched.state_dict()), file)
    file.seek(0)
    opt_state, sched_state = torch.load(file, weights_only=True)
    other = make_optimizer()
    resumed = make(name, other, total, **params)
    other.load_state_dict(opt_state)
    resumed.load_state_dict(sched_state)
    assert resumed.state_dict() == sched.state_dict()
    for t in range(stop, total + BEYOND):
        assert rates(other) == rates(opt)
        assert [group["momentum"] for group in other.param_groups] == [
            group["momentum"] for group in opt.param_groups
        ]
        advance(sched, opt, t)
        advance(resumed, other, t)


def test_resumed_with_more_steps_follows_the_longer_curve() -> None:
    opt = make_optimizer()
    sched = make("cosine", opt, 4)
    for t in range(4):
        advance(sched, opt, t)
    longer = make("cosine", opt, 8)
    longer.load_state_dict(sched.state_dict())
    advance(longer, opt, 4)
    assert rates(opt) == pytest.approx([lr * cosine(5, 0.0, 8) for lr in RATES])


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("cosine_restarts", {"cycles": 50}, r"scheduler.cycles=50: a run of 40 steps has no room for them\."),
        ("cosine_restarts", {"cycles": 9, "growth": 2.0}, r"cycles=9: .* with growth=2\."),
        ("piecewise", {"points": [0.2, 0.2]}, r"scheduler.factors: has 3 numbers for 2 points"),
        ("piecewise", {"points": [0.5, 0.2, 0.7]}, r"scheduler.points=\[0.5, 0.2, 0.7\]: must rise"),
    ],
)
def test_what_does_not_fit_is_told(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, make_optimizer(), **params)


@pytest.mark.parametrize("total", [1, 2, 3, 8, 40])
def test_chebyshev_takes_each_root_once(total: int) -> None:
    opt = make_optimizer()
    sched = make("chebyshev", opt, total, condition=5.0)
    seen = []
    for t in range(total):
        seen.append(rates(opt)[0] / RATES[0])
        advance(sched, opt, t)
    roots = [0.6 - 0.4 * math.cos(math.pi * (i + 0.5) / total) for i in range(total)]
    assert sorted(1 / factor for factor in seen) == pytest.approx(roots)


@pytest.mark.parametrize("name", BY_NAME)
def test_defaults_are_the_targets_or_say_what_those_are(name: str) -> None:
    block = BY_NAME[name]
    signature = inspect.signature(block.load())
    for param in block.params:
        theirs = signature.parameters[param.name].default
        ours = param.default if param.origin is SAME or theirs == param.default else param.origin
        assert theirs in (ours, inspect.Parameter.empty), param.name


@pytest.mark.parametrize("name", BY_NAME)
def test_tags(name: str) -> None:
    block = BY_NAME[name]
    assert block.tags["interval"] in ("step", "epoch")
    assert block.tags["needs_total"] == ("total_steps" in inspect.signature(block.load()).parameters)
    assert bool(block.tags.get("monitor")) == ("mode" in inspect.signature(block.load()).parameters)
    assert block.summary
    assert block.formula
