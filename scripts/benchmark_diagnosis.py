"""Does a diagnosis say truly whether a net starts to train, and does init=auto make it start?

The suite `diagnosis` of `benchmark.py`. A cell of the grid is an activation, an initialiser, a depth and an optimiser.
It trains if a net of it, at the best of a few learning rates, gets more than 0.22 of the way from chance (or from where it
begins) to perfect on instances held out, within 200 steps of 64 instances, in the first two orders of the instances, and near the border, where
one order starts and another does not, in at least three of five. The diagnosis sees the training instances. Cells are a random sample of the whole
grid, which has thousands.
"""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import dlblocks
from dlblocks.diagnosis.diagnose import RATES
from dlblocks.registry import REGISTRY

Row = tuple[str, ...]

STEPS, BATCH = 200, 64
TRAINS = 0.22
# Between these the order of the instances decides as much as the net does.
BORDER = (0.1, 0.35)
DEPTHS = (2, 5, 10, 20, 30, 50)
INITS: tuple[dict[str, Any], ...] = (
    *(
        {"name": name}
        for name in ("zeros", "ones", "identity", "sparse", "uniform", "truncated_normal", "default")
    ),
    *({"name": f"{kind}_{shape}"} for kind in ("glorot", "he", "lecun") for shape in ("normal", "uniform")),
    {"name": "kaiming_uniform"},
    {"name": "constant", "value": 0.05},
    *({"name": "orthogonal", "gain": gain} for gain in (0.5, 1.0, 1.4142, 3.0)),
    *({"name": "normal", "std": std} for std in (0.01, 0.05, 0.1, 0.3, 1.0)),
    *({"name": "variance_scaling", "scale": scale} for scale in (0.1, 0.5, 4.0, 10.0)),
)
OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {"name": "sgd", "momentum": 0.9}, "adam": {"name": "adam"}}


@dataclass(frozen=True)
class Cell:
    """One case of the grid."""

    activation: str
    init: dict[str, Any]
    depth: int
    optimizer: str
    seed: int
    kind: str = "mlp"
    width: int = 64
    data: str = "digits"


def diagnosis(repeats: int) -> list[Row]:
    """`repeats` times 50 cells of each grid, then all activations at depth 30."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    count = 50 * repeats
    return [
        _judged("tuned grid: MLP of width 64 on digits", sample(count, 1, held_out=False), ">= 99.0"),
        _judged(
            "held out: widths, data, convnets, norm, residuals", sample(count, 2, held_out=True), ">= 98.0"
        ),
        *_started(),
    ]


def sample(count: int, seed: int, held_out: bool) -> Iterator[Cell]:
    """Cells of a grid, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        cell = Cell(
            activation=draw.choice(elementwise()),
            init=draw.choice(INITS),
            depth=draw.choice(DEPTHS),
            optimizer=draw.choice(list(OPTIMIZERS)),
            seed=draw.randrange(10**6),
        )
        if not held_out:
            yield cell
            continue
        kind = draw.choice(("width", "data", "convnet", "norm", "residual"))
        yield {
            "width": replace(cell, width=draw.choice((32, 128, 256))),
            "data": replace(cell, data=draw.choice(("wine", "breast_cancer"))),
            "convnet": replace(
                cell, kind="convnet", width=draw.choice((16, 32)), depth=draw.choice((2, 4, 8, 16))
            ),
            "norm": replace(cell, kind="norm"),
            "residual": replace(cell, kind="residual"),
        }[kind]


def _judged(name: str, cells: Iterator[Cell], goal: str) -> Row:
    """Balanced accuracy of the diagnosis over cells, and what it costs."""
    counts = {(truth, said): 0 for truth in (True, False) for said in (True, False)}
    seconds = [0.0, 0.0]
    for cell in cells:
        begun = time.perf_counter()
        x, y, *_ = data(cell.data)
        found = dlblocks.diagnose(
            build(cell),
            (x, y),
            optimizer=OPTIMIZERS[cell.optimizer],
            batch_size=BATCH,
            suggest=False,
        )
        middle = time.perf_counter()
        counts[trains(cell, build), found.verdict.outcome == "trains"] += 1
        seconds[0] += middle - begun
        seconds[1] += time.perf_counter() - middle
    rates = []
    for truth in (True, False):
        whole = counts[truth, True] + counts[truth, False]
        rates.append(counts[truth, truth] / whole if whole else 1.0)
    said = f"{counts[True, True] + counts[False, False]} of {sum(counts.values())}"
    figures = f"{50 * sum(rates):.1f} % balanced"
    return name, "training it", f"{said}, {seconds[0]:.0f} s", f"{seconds[1]:.0f} s", figures, goal


def _started() -> list[Row]:
    """How many activations start at depth 30 without normalisation, by how the net was initialised."""
    rows = []
    for name, fill in FILLS.items():
        started = []
        for activation in elementwise():
            cell = Cell(activation, {"name": "orthogonal"}, 30, "adam", seed=3)

            def made(cell: Cell, fill: Callable[[nn.Module, Tensor], None] = fill) -> nn.Module:
                net = build(cell)
                fill(net, data(cell.data)[0][:256])
                return net

            try:
                ok = any(trains(replace(cell, optimizer=optimizer), made) for optimizer in OPTIMIZERS)
            except ImportError:
                started = None
                break
            except Exception:  # an initialiser of others that gives up on this activation
                ok = False
            started.append(ok)
        figures = "not installed" if started is None else f"{sum(started)} of {len(started)}"
        rows.append((f"init={name}, depth 30", "", figures, "", "", "all" if name == "auto" else ""))
    return rows


def _ours(init: str) -> Callable[[nn.Module, Tensor], None]:
    def fill(net: nn.Module, x: Tensor) -> None:
        dlblocks.initialize(net, init, generator=torch.Generator().manual_seed(0), batch=x)

    return fill


def _anyinit(mode: str) -> Callable[[nn.Module, Tensor], None]:
    def fill(net: nn.Module, x: Tensor) -> None:
        import anyinit

        anyinit.initialize(net, mode, x)

    return fill


FILLS = {
    "auto": _ours("auto"),
    "default": _ours("default"),
    "glorot_uniform": _ours("glorot_uniform"),
    "he_normal": _ours("he_normal"),
    "orthogonal": _ours("orthogonal"),
    "anyinit analytic": _anyinit("analytic"),
    "anyinit empirical": _anyinit("empirical"),
}


def trains(cell: Cell, make: Callable[[Cell], nn.Module]) -> bool:
    """Whether a net of a cell learns something at one of the rates, in most orders of the instances."""
    skills: list[float] = []
    for order in range(5):
        skills.append(_best_skill(cell, make, order))
        started = [skill > TRAINS for skill in skills]
        sure = all(not BORDER[0] <= skill < BORDER[1] for skill in skills) and len(set(started)) == 1
        if (order == 1 and sure) or max(started.count(True), started.count(False)) == 3:
            break
    return started.count(True) > started.count(False)


def _best_skill(cell: Cell, make: Callable[[Cell], nn.Module], order: int) -> float:
    best = 0.0
    for lr in RATES[cell.optimizer == "adam"]:
        best = max(best, _skill(cell, make(cell), lr, order))
        if best >= BORDER[1]:
            break
    return best


def _skill(cell: Cell, net: nn.Module, lr: float, order: int) -> float:
    """How far a net gets on its way from chance to perfect; the run ends where that is beyond the border."""
    x, y, held_x, held_y = data(cell.data)
    chance = float(held_y.bincount().max()) / len(held_y)

    def skill(above: float) -> float:
        net.eval()
        with torch.no_grad():
            accuracy = float((net(held_x).argmax(1) == held_y).float().mean())
        net.train()
        return (accuracy - above) / (1 - above)

    begun = max(chance, skill(0.0))
    optimizer = dlblocks.optimizer(OPTIMIZERS[cell.optimizer], net, lr=lr)
    draw = torch.Generator().manual_seed(cell.seed + 1 + order)
    rows: list[Tensor] = []
    best = 0.0
    for step in range(1, STEPS + 1):
        rows = rows or [
            part for part in torch.randperm(len(x), generator=draw).split(BATCH) if len(part) == BATCH
        ]
        chosen = rows.pop()
        loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            if not math.isfinite(float(loss.detach())):
                break
            best = max(best, skill(begun))
            if best >= BORDER[1]:
                break
    return best


def build(cell: Cell) -> nn.Module:
    """The net of a cell with its weights."""
    x, y, *_ = data(cell.data)
    shape, classes = tuple(x.shape[1:]), int(y.max()) + 1
    torch.manual_seed(cell.seed)
    if cell.kind == "convnet":
        channels = [cell.width] * cell.depth
        net = dlblocks.model("convnet", shape, classes, cell.activation, channels=channels, norm="none")
    elif cell.kind == "residual":
        layers = [
            Residual(nn.Sequential(nn.Linear(cell.width, cell.width), dlblocks.activation(cell.activation)))
            for _ in range(cell.depth)
        ]
        first = nn.Linear(math.prod(shape), cell.width)
        net = nn.Sequential(nn.Flatten(), first, *layers, nn.Linear(cell.width, classes))
    else:
        norm = "batch" if cell.kind == "norm" else "none"
        net = dlblocks.model(
            "mlp", shape, classes, cell.activation, width=cell.width, depth=cell.depth, norm=norm
        )
    return dlblocks.initialize(net, cell.init, generator=torch.Generator().manual_seed(cell.seed))


class Residual(nn.Module):
    """`x + layer(x)`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


@cache
def elementwise() -> list[str]:
    """The activations that map each number by itself."""
    return [
        name
        for name in dlblocks.names("activation")
        if REGISTRY.get("activation", name).tags.get("elementwise")
    ]


@cache
def data(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised inputs and labels: three quarters to train on, the rest held out."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y)[order]
    train = len(x) * 3 // 4
    deviation = x[:train].std(0)
    x = (x - x[:train].mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    x = x.reshape(-1, 1, 8, 8) if name == "digits" else x
    return x[:train], y[:train], x[train:], y[train:]
