"""The suite `blocks` of benchmark.py: our own blocks beside the same of peers, forward and backward.

A peer is torch's composite of the formula as users write it, torch's function (of a loss its module, as ours
is one: calling a module costs a microsecond), timm's or Keras's (with its torch backend). One that is not installed is left out, and said.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dlblocks
from dlblocks.registry import REGISTRY, names

Function = Callable[[Tensor], Tensor]

ROWS = 1000
INSTANCES = 100_000
# Seconds that a measurement takes at least.
MEASUREMENT = 0.01
# Peer -> why it has no column.
MISSING: dict[str, str] = {}


def blocks(repeats: int) -> list[tuple[str, ...]]:
    """Activations on 1 M numbers and in a net, losses, initialisers; rows of `measured, fastest peer, median,
    its median, ratio, goal`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peers = {"torch": _torch(), "timm": _timm(), "keras": _keras()}
    rows = []
    for name in _ours():
        rivals = {peer: table[name] for peer, table in peers.items() if name in table}
        if not rivals:
            continue
        rows.append(_row(f"{name}, 1 M", _on_many(_activation(name)), _each(rivals, _on_many), repeats))
        rows.append(_row(f"{name}, MLP", _in_net(_activation(name)), _each(rivals, _in_net), repeats))
    others = (*_losses(), *_more_losses(), *_initializers())
    rows.extend(_row(name, ours, rivals, repeats) for name, ours, rivals in others)
    rows.extend((peer, "not installed", "", "", "", why) for peer, why in MISSING.items())
    return rows


def _ours() -> list[str]:
    found = (REGISTRY.get("activation", name) for name in names("activation"))
    return [block.name for block in found if str(block.target).startswith("dlblocks.")]


def _activation(name: str) -> nn.Module:
    return dlblocks.activation(name)


def _each(rivals: dict[str, Any], measure: Callable[[Any], Callable[[], object]]) -> dict[str, Any]:
    return {peer: measure(rival) for peer, rival in rivals.items()}


def _row(
    name: str, ours: Callable[[], object], rivals: dict[str, Callable[[], object]], repeats: int
) -> tuple[str, ...]:
    """Medians of the CPU time, which what else runs hardly touches, measured in turn, forth and back; beside
    the ratio the quartiles of those of single turns."""
    sides = {"ours": ours, **rivals}
    calls = {side: _calls(call) for side, call in sides.items()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    for _ in range(5 * repeats):
        for side in order:
            times[side].append(_seconds(sides[side], calls[side]))
        order.reverse()
    medians = {side: statistics.median(each) for side, each in times.items()}
    own = medians.pop("ours")
    fastest = min(medians, key=medians.__getitem__)
    other = medians[fastest]
    ratios = [a / b for a, b in zip(times["ours"], times[fastest], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    ratio = f"{own / other:.2f} ({low:.2f}-{high:.2f})"
    return name, fastest, f"{own * 1e3:.3f} ms", f"{other * 1e3:.3f} ms", ratio, "<= 1.0"


def _calls(call: Callable[[], object]) -> int:
    """So many calls that a measurement takes some milliseconds."""
    call()
    return max(1, round(MEASUREMENT / _seconds(call, 3)))


def _seconds(call: Callable[[], object], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def _on_many(activation: Function) -> Callable[[], object]:
    x = torch.randn(ROWS, 1_000_000 // ROWS, requires_grad=True)
    upstream = torch.ones_like(activation(x))
    # With its parameters, as in training.
    return lambda: activation(x).backward(upstream)


def _in_net(activation: Function) -> Callable[[], object]:
    """Forward and backward of three layers of 512, batch 256."""
    x = torch.randn(256, 512)
    layers, width = [], 512
    for _ in range(3):
        layers.append(nn.Linear(width, 512))
        width = activation(torch.zeros(1, 512)).shape[-1]

    def run() -> None:
        y = x
        for layer in layers:
            y = activation(layer(y))
        y.sum().backward()
        for layer in layers:
            layer.zero_grad()

    return run


def _halves(gate: Function) -> Function:
    def gated(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return gate(a) * b

    return gated


def _sparsemax(x: Tensor) -> Tensor:
    ordered = x.sort(dim=-1, descending=True).values
    total = ordered.cumsum(-1)
    rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    size = (1 + rank * ordered > total).sum(-1, keepdim=True)
    return (x - (total.gather(-1, size - 1) - 1) / size).clamp(min=0)


def _torch() -> dict[str, Function]:
    """The formulas as they stand in papers."""
    beta, scale, bias = (nn.Parameter(torch.tensor(value)) for value in (1.0, 0.9, -0.4))
    return {
        "crelu": lambda x: torch.cat([x.relu(), (-x).relu()], -1),
        "exponential": torch.exp,
        "geglu": _halves(F.gelu),
        "hard_mish": lambda x: x * (x + 2).clamp(0, 2) / 2,
        "maxout": lambda x: x.view(*x.shape[:-1], 2, -1).max(-2).values,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "reglu": _halves(F.relu),
        "sparse_plus": lambda x: torch.where(x <= -1, 0, torch.where(x < 1, (x + 1) ** 2 / 4, x)),
        "sparse_sigmoid": lambda x: ((x + 1) / 2).clamp(0, 1),
        "sparsemax": _sparsemax,
        "squared_relu": lambda x: F.relu(x) ** 2,
        "squareplus": lambda x: (x + torch.sqrt(x * x + 4)) / 2,
        "star_relu": lambda x: scale * F.relu(x) ** 2 + bias,
        "swiglu": _halves(F.silu),
        "swish_beta": lambda x: x * torch.sigmoid(beta * x),
    }


def _timm() -> dict[str, Function]:
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        MISSING["timm"] = "pip install timm"
        return {}
    # By its file: the package imports torchvision, which its activations don't need.
    path = Path(found.submodule_search_locations[0]) / "layers" / "activations.py"
    spec = importlib.util.spec_from_file_location("timm_activations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"hard_mish": module.HardMish(), "quick_gelu": module.QuickGELU()}


def _keras() -> dict[str, Function]:
    os.environ["KERAS_BACKEND"] = "torch"
    try:
        from keras import activations
    except ImportError:
        MISSING["keras"] = "pip install keras"
        return {}
    return {
        "exponential": activations.exponential,
        "sparse_plus": activations.sparse_plus,
        "sparse_sigmoid": activations.sparse_sigmoid,
        # Not its sparsemax: in 3.15 that is another function, see `differs_from`.
        "squareplus": activations.squareplus,
    }


def _losses() -> Iterator[tuple[str, Callable[[], object], dict[str, Callable[[], object]]]]:
    """On 1 M outputs; focal and the cross-entropies on 100 k instances of 10 classes."""
    x, y = torch.randn(INSTANCES, 10, requires_grad=True), torch.randn(INSTANCES, 10)
    labels, bits = torch.randint(10, (INSTANCES,)), (y > 0).float()

    def focal(x: Tensor, target: Tensor) -> Tensor:
        cost = F.cross_entropy(x, target, reduction="none")
        return ((1 - torch.exp(-cost)) ** 2 * cost).mean()

    def binary_focal(x: Tensor, target: Tensor) -> Tensor:
        """As in torchvision.ops.sigmoid_focal_loss."""
        p = torch.sigmoid(x)
        cost = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        return (cost * (1 - (p * target + (1 - p) * (1 - target))) ** 2).mean()

    for name, target, rival in (
        ("mse", y, nn.MSELoss()),
        ("mae", y, nn.L1Loss()),
        ("huber", y, nn.HuberLoss()),
        ("cross_entropy", labels, nn.CrossEntropyLoss()),
        ("bce", bits, nn.BCEWithLogitsLoss()),
        ("focal", labels, focal),
        ("binary_focal", bits, binary_focal),
        ("hinge", bits, lambda x, y: (1 - (2 * y - 1) * x).clamp(min=0).mean()),
        ("squared_hinge", bits, lambda x, y: (1 - (2 * y - 1) * x).clamp(min=0).square().mean()),
        ("quantile", y, lambda x, y: torch.maximum(0.5 * (y - x), -0.5 * (y - x)).mean()),
        ("log_cosh", y, lambda x, y: (x - y + F.softplus(2 * (y - x)) - 0.6931471805599453).mean()),
    ):
        ours = dlblocks.loss(name)
        yield (
            f"{name}, 1 M",
            lambda ours=ours, target=target: ours(x, target).backward(),
            {"torch": lambda rival=rival, target=target: rival(x, target).backward()},
        )


def _more_losses() -> Iterator[tuple[str, Callable[[], object], dict[str, Callable[[], object]]]]:
    """Those of other targets or arguments, and those of regions, on 1 M numbers."""
    x, y = torch.randn(INSTANCES, 10, requires_grad=True), torch.randn(INSTANCES, 10)
    bits, labels = (y > 0).float(), torch.randint(10, (INSTANCES,))
    signs, same = 2 * bits - 1, 2 * torch.randint(2, (INSTANCES,)) - 1.0
    picture, mask = torch.randn(1, 1, 1000, 1000, requires_grad=True), torch.rand(1, 1, 1000, 1000).round()
    counts = list(range(10, 20))
    a, b = torch.randn(1_000_000, requires_grad=True), torch.randn(1_000_000)
    order = 2 * torch.randint(2, (1_000_000,)) - 1.0
    # Ours, its parameters and arguments; the peer, what it is, and its arguments.
    compared: list[tuple[str, dict[str, Any], tuple[Tensor, ...], str, Any, tuple[Tensor, ...]]] = [
        ("smooth_l1", {}, (x, y), "torch", nn.SmoothL1Loss(), (x, y)),
        ("poisson_nll", {}, (x, bits), "torch", nn.PoissonNLLLoss(), (x, bits)),
        ("kl_div", {}, (x, y.softmax(1)), "torch", nn.KLDivLoss(reduction="batchmean"), (x, y.softmax(1))),
        ("nll", {}, (x, labels), "torch", nn.NLLLoss(), (x, labels)),
        ("soft_margin", {}, (x, bits), "torch", nn.SoftMarginLoss(), (x, signs)),
        ("multi_margin", {}, (x, labels), "torch", nn.MultiMarginLoss(), (x, labels)),
        ("cosine_embedding", {}, (x, y, same), "torch", nn.CosineEmbeddingLoss(), (x, y, same)),
        ("triplet", {}, (x, y, y.flip(0)), "torch", nn.TripletMarginLoss(), (x, y, y.flip(0))),
        ("margin_ranking", {}, (a, b, order), "torch", nn.MarginRankingLoss(), (a, b, order)),
        ("hinge_embedding", {}, (a, order), "torch", nn.HingeEmbeddingLoss(), (a, order)),
    ]
    try:
        import pytorch_optimizer as po
    except ImportError:
        MISSING["pytorch-optimizer"] = "pip install pytorch-optimizer"
    else:
        regions, name = (picture, mask), "pytorch-optimizer"
        compared += [
            ("dice", {}, regions, name, po.DiceLoss(mode="binary"), regions),
            ("jaccard", {}, regions, name, po.JaccardLoss(mode="binary"), regions),
            ("tversky", {}, regions, name, po.TverskyLoss(), regions),
            ("focal_tversky", {}, regions, name, po.FocalTverskyLoss(), regions),
            ("lovasz", {}, regions, name, lambda x, y: po.LovaszHingeLoss()(x[:, 0], y[:, 0]), regions),
            ("soft_f1", {}, (x, bits), name, lambda x, y: po.SoftF1Loss()(x.sigmoid(), y), (x, bits)),
            ("ldam", {"counts": counts}, (x, labels), name, po.LDAMLoss(num_class_list=counts), (x, labels)),
            (
                "bi_tempered",
                {"iterations": 5},
                (x, labels),
                name,
                po.BiTemperedLogisticLoss(t1=0.8, t2=1.3),
                (x, labels),
            ),
            ("focal_cosine", {}, (x, labels), name, po.FocalCosineLoss(), (x, labels)),
        ]

    def training(loss: Any, arguments: tuple[Tensor, ...]) -> Callable[[], object]:
        return lambda: loss(*arguments).backward()

    for name, params, arguments, peer, rival, their_arguments in compared:
        ours = dlblocks.loss(name, **params)
        yield f"{name}, 1 M", training(ours, arguments), {peer: training(rival, their_arguments)}


def _initializers() -> Iterator[tuple[str, Callable[[], object], dict[str, Callable[[], object]]]]:
    """Of a layer of 512 x 512."""
    weight = torch.empty(512, 512)
    for name, rival in (
        ("orthogonal", nn.init.orthogonal_),
        ("truncated_normal", lambda w: nn.init.trunc_normal_(w, 0.0, 0.05, -0.1, 0.1)),
        ("xavier_uniform", nn.init.xavier_uniform_),
        ("kaiming_normal", nn.init.kaiming_normal_),
        ("sparse", lambda w: nn.init.sparse_(w, 0.9)),
    ):
        ours = dlblocks.initializer(name)
        yield (
            f"{name}, 512 x 512",
            lambda ours=ours: ours(weight),
            {"torch": lambda rival=rival: rival(weight)},
        )
