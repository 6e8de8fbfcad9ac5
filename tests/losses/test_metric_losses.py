"""Losses of embeddings, orders and sequences, against torch and closed formulas."""

from __future__ import annotations

import inspect
import itertools
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dlblocks
from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY, names

NAMES = [name for name in names("loss") if "arguments" in REGISTRY.get("loss", name).tags]
N, D = 6, 3
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def signs() -> Tensor:
    return torch.tensor([1, -1, 1, 1, -1, -1])


def example(name: str) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)

    def points(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    if name == "ctc":
        lengths = torch.tensor([8, 7, 8, 5, 8, 6])
        return [
            points(8, N, 5).log_softmax(-1),
            torch.randint(1, 5, (N, 3), generator=draw),
            lengths,
            torch.tensor([3, 2, 1, 2, 3, 1]),
        ]
    return {
        "triplet": lambda: [points(N, D), points(N, D), points(N, D)],
        "cosine_embedding": lambda: [points(N, D), points(N, D), signs()],
        "hinge_embedding": lambda: [points(N).abs(), signs()],
        "margin_ranking": lambda: [points(N), points(N), signs()],
        "nt_xent": lambda: [points(N, D), LABELS],
        "circle": lambda: [points(N, D), LABELS],
        "ranking_softmax": lambda: [points(N, 4), torch.randint(0, 3, (N, 4), generator=draw).double()],
    }[name]()


def _cosines(x: Tensor) -> list[list[float]]:
    return [[float(F.cosine_similarity(a, b, dim=0)) for b in x] for a in x]


def _nt_xent(x: Tensor, labels: Tensor, t: float) -> Tensor:
    s, y, found = _cosines(x), labels.tolist(), []
    for i in range(N):
        whole = sum(exp(s[i][k] / t) for k in range(N) if k != i)
        logs = [-log(exp(s[i][p] / t) / whole) for p in range(N) if p != i and y[p] == y[i]]
        found.append(sum(logs) / max(len(logs), 1))
    return torch.tensor(found, dtype=torch.float64)


def _circle(x: Tensor, labels: Tensor, m: float, gamma: float) -> Tensor:
    s, y, found = _cosines(x), labels.tolist(), []
    for i in range(N):
        positives = [s[i][k] for k in range(N) if k != i and y[k] == y[i]]
        negatives = [s[i][k] for k in range(N) if y[k] != y[i]]
        apart = sum(exp(gamma * max(0, v + m) * (v - m)) for v in negatives)
        together = sum(exp(-gamma * max(0, 1 + m - v) * (v - 1 + m)) for v in positives)
        found.append(log(1 + apart * together) if positives and negatives else 0.0)
    return torch.tensor(found, dtype=torch.float64)


def _alignments(log_probs: Tensor, labels: list[int], blank: int) -> float:
    """By trying all paths."""
    steps, classes = log_probs.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=steps):
        collapsed = [k for k, _ in itertools.groupby(path) if k != blank]
        if collapsed == labels:
            total += exp(sum(float(log_probs[t, k]) for t, k in enumerate(path)))
    return -log(total)


CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("triplet", {}, lambda a, p, n: F.triplet_margin_loss(a, p, n, reduction="none")),
    ("triplet", {"margin": 0.3, "swap": True}, lambda a, p, n: F.triplet_margin_loss(a, p, n, margin=0.3, swap=True, reduction="none")),
    ("triplet", {"distance": "squared"}, lambda a, p, n: ((a - p) ** 2).sum(1).sub(((a - n) ** 2).sum(1)).add(1).relu()),
    ("triplet", {"distance": "cosine", "margin": 0.5}, lambda a, p, n: (F.cosine_similarity(a, n) - F.cosine_similarity(a, p) + 0.5).relu()),
    ("cosine_embedding", {}, lambda a, b, y: F.cosine_embedding_loss(a, b, y, reduction="none")),
    ("cosine_embedding", {"margin": 0.4}, lambda a, b, y: F.cosine_embedding_loss(a, b, y, margin=0.4, reduction="none")),
    ("hinge_embedding", {}, lambda x, y: F.hinge_embedding_loss(x, y, reduction="none")),
    ("hinge_embedding", {"margin": 2.0}, lambda x, y: F.hinge_embedding_loss(x, y, margin=2.0, reduction="none")),
    ("margin_ranking", {}, lambda a, b, y: F.margin_ranking_loss(a, b, y, reduction="none")),
    ("margin_ranking", {"margin": 0.7}, lambda a, b, y: F.margin_ranking_loss(a, b, y, margin=0.7, reduction="none")),
    ("nt_xent", {}, lambda x, y: _nt_xent(x, y, 0.07)),
    ("nt_xent", {"temperature": 1.0}, lambda x, y: _nt_xent(x, y, 1.0)),
    ("circle", {}, lambda x, y: _circle(x, y, 0.25, 256.0)),
    ("circle", {"margin": 0.4, "gamma": 2.0}, lambda x, y: _circle(x, y, 0.4, 2.0)),
    ("ranking_softmax", {}, lambda x, y: -(y / y.sum(1, keepdim=True).clamp_min(1e-9) * x.log_softmax(1)).sum(1)),
    ("ctc", {}, lambda *a: F.ctc_loss(*a, reduction="none")),
]  # fmt: skip


def test_every_loss_of_own_arguments_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "params", "formula"), CASES, ids=[f"{name}-{params}" for name, params, _ in CASES]
)
def test_values_in_every_reduction_and_with_weights(name: str, params: dict[str, Any], formula: Any) -> None:
    arguments = example(name)
    values = formula(*arguments)
    divided = values / arguments[3] if name == "ctc" else values
    expected = {"none": values, "mean": divided.mean(), "sum": values.sum()}
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    weighted = {
        "none": weight * values,
        "mean": (weight * divided).sum() / weight.sum(),
        "sum": (weight * values).sum(),
    }
    for reduction in ("none", "mean", "sum"):
        loss = dlblocks.loss(name, **params, reduction=reduction)
        torch.testing.assert_close(loss(*arguments), expected[reduction])
        torch.testing.assert_close(loss(*arguments, sample_weight=weight), weighted[reduction])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "circle"])
def test_gradients_are_those_of_the_values(name: str) -> None:
    """But for circle's, whose weights have none by definition; ctc's is one with that of the softmax before it."""
    first, *rest = example(name)
    loss = dlblocks.loss(name)

    def value(x: Tensor) -> Tensor:
        return loss(x.log_softmax(-1) if name == "ctc" else x, *rest)

    assert torch.autograd.gradcheck(value, first.requires_grad_())


def test_circles_gradient_is_that_of_fixed_weights() -> None:
    x = example("circle")[0].requires_grad_()
    dlblocks.loss("circle", gamma=4.0)(x, LABELS).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    arguments = [a.to(dtype) if a.is_floating_point() else a for a in example(name)]
    with torch.autocast("cpu", torch.bfloat16):
        got = dlblocks.loss(name)(*arguments)
    assert got.dtype == torch.float32
    wide = [a.float() if a.is_floating_point() else a for a in arguments]
    torch.testing.assert_close(got, dlblocks.loss(name)(*wide))


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_whole_and_fit_no_recipe(name: str) -> None:
    block = REGISTRY.get("loss", name)
    signature = inspect.signature(block.load())
    assert {param.name: param.default for param in block.params} == {
        key: parameter.default for key, parameter in signature.parameters.items()
    }
    assert tuple(inspect.signature(block.load().each).parameters)[1:] == block.tags["arguments"]
    with pytest.raises(UserError, match=f"loss={name}: does not fit the task"):
        dlblocks.LitModule(task="multiclass", input_shape=(3,), outputs=3, loss=name)
    with pytest.raises(ValueError, match="reduction='avg': must be one of none, mean, sum"):
        block.load()(reduction="avg")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("ctc",)])
def test_shapes_that_do_not_belong_together_are_refused(name: str) -> None:
    *first, last = example(name)
    with pytest.raises(ValueError, match="must"):
        dlblocks.loss(name)(*first, last[:-1])


def test_ctc_counts_every_alignment() -> None:
    log_probs = torch.randn(4, 1, 3, dtype=torch.float64).log_softmax(-1)
    for labels in ([1], [1, 2], [1, 1], [2, 1]):
        got = dlblocks.loss("ctc", reduction="sum")(
            log_probs, torch.tensor([labels]), torch.tensor([4]), torch.tensor([len(labels)])
        )
        assert got.item() == pytest.approx(_alignments(log_probs[:, 0], labels, 0))
    impossible = (log_probs[:1], torch.tensor([[1, 2]]), torch.tensor([1]), torch.tensor([2]))
    assert dlblocks.loss("ctc")(*impossible).isinf()
    assert dlblocks.loss("ctc", zero_infinity=True)(*impossible) == 0
    theirs = nn.CTCLoss()(*(example("ctc")))
    torch.testing.assert_close(dlblocks.loss("ctc")(*example("ctc")), theirs)


@pytest.mark.parametrize("name", ["nt_xent", "circle"])
def test_anchors_without_partner_cost_nothing(name: str) -> None:
    x = torch.randn(3, D)
    values = dlblocks.loss(name, reduction="none")(x, torch.tensor([0, 1, 2]))
    assert values.tolist() == [0, 0, 0]
    same = dlblocks.loss("circle", reduction="none")(x, torch.tensor([0, 0, 0]))
    assert same.tolist() == [0, 0, 0]


def test_masks_of_one_shape_and_classes_agree_where_they_say_the_same() -> None:
    """Segmentation: logits of two classes against one channel with their difference."""
    x, y = torch.randn(4, 2, 5, dtype=torch.float64), torch.randint(2, (4, 5))
    for name in ("dice", "jaccard", "tversky", "focal_tversky"):
        loss = dlblocks.loss(name, reduction="none")
        classes = loss(x, y)[:, 1]
        channel = loss((x[:, 1:] - x[:, :1]), y[:, None].double())[:, 0]
        torch.testing.assert_close(classes, channel)
        torch.testing.assert_close(channel, loss(x[:, 1] - x[:, 0], y.double())[:, 0])


def test_lovasz_of_masks_is_the_hinge_of_its_extension() -> None:
    x = torch.tensor([[2.0, -2.0, 0.5, -0.5]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    # Errors 0, 0, 1.5, 1.5: wrong in both, the Jaccard loss rises from 0 by 1/3 and then to 2/3.
    assert dlblocks.loss("lovasz")(x, y).item() == pytest.approx(1.5 * 2 / 3)
