"""Losses that don't fit what the net gives, and labels that don't fit the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlblocks import factory
from dlblocks.diagnosis.diagnose import diagnose
from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.ties import findings
from dlblocks.module import LitModule
from dlblocks.registry import REGISTRY

F = nn.functional
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
LABELS = (X[:, :3] > 0).float()
BINARY = LABELS[:, 0]


class Ending(nn.Module):
    """A net with anything after its last weights."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(8, outputs), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x))


def classes(end: Callable[[Tensor], Tensor]) -> nn.Module:
    return Ending(3, end)


def number(end: Callable[[Tensor], Tensor] = lambda z: z) -> nn.Module:
    return Ending(1, lambda z: end(z).squeeze(1))


def only(net: nn.Module, y: Tensor, loss: Any, x: Tensor = X) -> Finding:
    (wrong,) = findings(net, x, y, loss)
    return wrong


def entropy_by_logsumexp(output: Tensor, y: Tensor) -> Tensor:
    return (output.logsumexp(1) - output.gather(1, y[:, None])[:, 0]).mean()


def entropy_by_softplus(output: Tensor, y: Tensor) -> Tensor:
    return (F.softplus(output) - output * y).mean()


def hinge(output: Tensor, y: Tensor) -> Tensor:
    return (1 - output * y).clamp(min=0).mean()


class Functional(nn.Module):
    """A net whose last activation is a function in its code, behind a change of shape."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        squashed = {"softmax": out.softmax(1), "sigmoid": out.sigmoid(), "none": out}[self.last]
        return squashed.unsqueeze(1).squeeze(1)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)),
        nn.Sequential(nn.Linear(8, 3), nn.Sigmoid()),
        Functional("softmax"),
        Functional("sigmoid"),
    ],
)
def test_a_double_softmax_is_found_in_modules_and_in_code(net: nn.Module) -> None:
    (wrong,) = findings(net, X, CLASSES, F.cross_entropy)
    assert "a double" in wrong.message
    assert wrong.where == "loss"


def test_a_double_sigmoid_is_found() -> None:
    net = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid(), nn.Flatten(0))
    (wrong,) = findings(net, X, (X[:, 0] > 0).float(), F.binary_cross_entropy_with_logits)
    assert "a double sigmoid" in wrong.message


@pytest.mark.parametrize(
    ("net", "y", "loss"),
    [
        (nn.Linear(8, 3), CLASSES, F.cross_entropy),
        (nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1)), CLASSES, F.nll_loss),
        (
            nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1)),
            CLASSES,
            F.cross_entropy,
        ),  # the second changes nothing
        (nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()), (X[:, :1] > 0).float(), F.binary_cross_entropy),
        (nn.Linear(8, 1), X[:, :1], F.mse_loss),
        (nn.Sequential(nn.Linear(8, 2), nn.Sigmoid()), X[:, :2].sigmoid(), F.mse_loss),
    ],
)
def test_what_fits_is_left_alone(net: nn.Module, y: Tensor, loss) -> None:
    assert list(findings(net, X, y, loss)) == []


@pytest.mark.parametrize("net", [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 3), nn.Softmax(1))])
def test_negative_log_likelihood_of_no_log_probabilities(net: nn.Module) -> None:
    (wrong,) = findings(net, X, CLASSES, F.nll_loss)
    assert "takes log-probabilities" in wrong.message


def l1_of_differences(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).abs().mean()


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, l1_of_differences])
def test_shapes_that_are_spread(loss) -> None:
    (wrong,) = findings(nn.Linear(8, 1), X, X[:, 0], loss)
    assert "(32, 1)" in wrong.message
    assert "(32,)" in wrong.message


def test_labels_outside_the_classes() -> None:
    (wrong,) = findings(nn.Linear(8, 3), X, CLASSES + 1, F.cross_entropy)
    assert "labels go from 1 to 3, but the net tells 3 classes apart: 0 to 2" in wrong.message


def test_a_diagnosis_reports_them() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3), nn.Softmax(1))
    found = diagnose(net, (X.repeat(8, 1), CLASSES.repeat(8)), optimizer="adam")
    assert not found.sound
    assert any("double softmax" in line for line in found.lines())


@pytest.mark.parametrize(
    ("net", "y", "loss", "kind"),
    [
        (number(lambda z: z.sigmoid().sigmoid()), BINARY, F.binary_cross_entropy, "sigmoid"),
        (classes(lambda z: z.softmax(1).log_softmax(1)), CLASSES, F.nll_loss, "softmax"),
        (
            classes(lambda z: z.sigmoid().clamp(0.01, 0.99).softmax(1)),
            CLASSES,
            F.multi_margin_loss,
            "sigmoid",
        ),
    ],
)
def test_a_net_that_squashes_twice_by_itself(net: nn.Module, y: Tensor, loss: Any, kind: str) -> None:
    wrong = only(net, y, loss)
    assert wrong.where == "model"
    assert f"a double {kind}" in wrong.message


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z.softmax(1).clamp(1e-6, 1),
        lambda z: z.softmax(1) + 1e-8,
        lambda z: torch.where(z.softmax(1) > 0, z.softmax(1), 1e-8) / 1.0,
        lambda z: z.log_softmax(1).exp(),
        lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    ],
    ids=["clamp", "added", "of_two", "exponential", "written_out"],
)
@pytest.mark.parametrize("loss", [F.cross_entropy, entropy_by_logsumexp])
def test_a_softmax_is_seen_behind_a_guard(end: Callable[[Tensor], Tensor], loss: Any) -> None:
    assert "a double softmax" in only(classes(end), CLASSES, loss).message


@pytest.mark.parametrize("loss", [entropy_by_softplus, F.binary_cross_entropy_with_logits])
def test_a_double_sigmoid_of_a_loss_written_out(loss: Any) -> None:
    assert "a double sigmoid" in only(number(torch.sigmoid), BINARY, loss).message


_ON_LOGITS = [
    name
    for name in REGISTRY.names("loss")
    if REGISTRY.get("loss", name).tags.get("expects") == "logits"
    and REGISTRY.get("loss", name).tags["target"] != "masks"
]


@pytest.mark.parametrize("name", _ON_LOGITS)
def test_each_loss_on_logits_is_known_to_be_one(name: str) -> None:
    indices = REGISTRY.get("loss", name).tags["target"] == "indices"
    net = classes(lambda z: z.softmax(1)) if indices else classes(torch.sigmoid)
    y = CLASSES if indices else LABELS
    assert "Let the net end before its" in only(net, y, factory.loss(name)).message
    assert list(findings(nn.Linear(8, 3), X, y, factory.loss(name))) == []


def test_a_sum_takes_what_its_terms_take() -> None:
    loss = factory.loss("sum", terms={"bi_tempered": 1.0, "sparsemax_loss": 1.0})
    assert "takes logits" in only(classes(lambda z: z.softmax(1)), CLASSES, loss).message


def test_the_loss_of_a_lightning_module_is_known() -> None:
    loss = {"name": "sum", "terms": {"bi_tempered": 1.0}}
    module = LitModule(task="multiclass", input_shape=(8,), outputs=3, loss=loss)
    wrong = only(classes(lambda z: z.softmax(1)), CLASSES, module.criterion)
    assert "bi_tempered takes logits" in wrong.message
    nll = LitModule(task="multiclass", input_shape=(8,), outputs=3, loss="nll")  # it makes log-probabilities
    assert "a double softmax" in only(classes(lambda z: z.softmax(1)), CLASSES, nll.criterion).message
    assert list(findings(nn.Linear(8, 3), X, CLASSES, nll.criterion)) == []


def test_probabilities_are_no_log_probabilities() -> None:
    wrong = only(classes(lambda z: z.softmax(1)), F.one_hot(CLASSES, 3).float(), factory.loss("kl_div"))
    assert "takes log-probabilities" in wrong.message


def focal(output: Tensor, y: Tensor) -> Tensor:
    logs = output.log_softmax(1)
    return F.nll_loss((1 - logs.exp()) ** 2 * logs, y)


def log_cosh(output: Tensor, y: Tensor) -> Tensor:
    return (output - y + F.softplus(-2 * (output - y))).mean()


def contrastive(output: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def pairs(output: Tensor, y: Tensor) -> Tensor:
    return F.relu(1 - (output - output.T) * torch.sign(y[:, None] - y)).mean()


def attention(z: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(z[None], z[None], z[None])[0]


@pytest.mark.parametrize(
    ("net", "y", "loss"),
    [
        (classes(lambda z: z.softmax(1).log()), CLASSES, F.nll_loss),
        (classes(lambda z: (z.softmax(1) + 1e-8).log()), CLASSES, F.nll_loss),
        (classes(lambda z: z.softmax(1).log()), CLASSES, F.cross_entropy),
        (classes(lambda z: z.softmax(1)), CLASSES, lambda output, y: F.nll_loss(output.log(), y)),
        (nn.Linear(8, 3), CLASSES, focal),
        (classes(torch.sigmoid), LABELS, F.mse_loss),
        (classes(torch.sigmoid), LABELS, log_cosh),
        (classes(torch.sigmoid), LABELS, factory.loss("log_cosh")),
        (classes(torch.sigmoid), CLASSES, contrastive),
        (classes(lambda z: z * z.sigmoid()), CLASSES, F.cross_entropy),
        (classes(lambda z: X[:, :3] * z.sigmoid()), CLASSES, F.cross_entropy),
        (classes(lambda z: X[:, :3] + z.sigmoid()), CLASSES, F.cross_entropy),
        (classes(attention), CLASSES, F.cross_entropy),
        (nn.Sequential(nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 3)), CLASSES, F.cross_entropy),
        (classes(lambda z: torch.tanh(z.sigmoid())), LABELS, F.binary_cross_entropy_with_logits),
        (classes(lambda z: z.log_softmax(1)), F.one_hot(CLASSES, 3).float(), lambda o, y: -(y * o).mean()),
        (nn.Linear(8, 1), BINARY, lambda output, y: (output.squeeze(1) - y).square().mean()),
        (nn.Linear(8, 1), BINARY, pairs),
    ],
)
def test_what_only_looks_alike_is_left_alone(net: nn.Module, y: Tensor, loss: Any) -> None:
    assert list(findings(net, X, y, loss)) == []


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (2 * LABELS - 1, "labels are -1 and 1, but"),
        (LABELS + LABELS.roll(1, 1), "labels go from 0 to 2, but"),
        (X[:, :3], "for values use mse_loss"),
    ],
)
@pytest.mark.parametrize(
    ("net", "loss"),
    [
        (nn.Linear(8, 3), F.binary_cross_entropy_with_logits),
        (nn.Linear(8, 3), nn.BCEWithLogitsLoss()),
        (classes(torch.sigmoid), nn.BCELoss()),
        (nn.Linear(8, 3), factory.loss("bce")),
        (nn.Linear(8, 3), factory.loss("asymmetric")),
    ],
)
def test_labels_other_than_0_and_1(net: nn.Module, loss: Any, y: Tensor, told: str) -> None:
    wrong = only(net, y, loss)
    assert told in wrong.message
    assert wrong.where == "data"


@pytest.mark.parametrize("name", ["hinge", "squared_hinge", "perceptron", "soft_margin", "zlpr"])
def test_a_loss_that_takes_minus_1_for_0_may_have_it(name: str) -> None:
    assert list(findings(nn.Linear(8, 3), X, 2 * LABELS - 1, factory.loss(name))) == []
    assert "takes 0 and 1" in only(nn.Linear(8, 3), 2 * LABELS, factory.loss(name)).message


@pytest.mark.parametrize("loss", [F.soft_margin_loss, nn.SoftMarginLoss(), nn.HingeEmbeddingLoss(), hinge])
def test_0_and_1_for_a_loss_of_minus_1_and_1(loss: Any) -> None:
    wrong = only(number(), BINARY, loss)
    assert "take" in wrong.message
    assert "give 2 * y - 1" in wrong.message
    assert wrong.where == "data"
    assert list(findings(number(), X, 2 * BINARY - 1, loss)) == []


def far_below() -> nn.Module:
    net = nn.Linear(8, 3)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, -3.0)
    return net


@pytest.mark.parametrize(
    ("net", "y", "loss"),
    [
        (nn.Linear(8, 3), 2 * LABELS - 1, lambda o, y: F.binary_cross_entropy_with_logits(o, (y + 1) / 2)),
        (far_below(), LABELS, lambda output, y: hinge(output, 2 * y - 1)),
        (far_below(), LABELS, factory.loss("perceptron")),
        (
            nn.Linear(8, 3),
            torch.where(X[:, 1:4] > 1, 255.0, LABELS),
            lambda o, y: (F.binary_cross_entropy_with_logits(o, y, reduction="none") * (y < 255)).mean(),
        ),
    ],
    ids=["to_0_and_1", "to_signs", "no_cost_below", "masked"],
)
def test_labels_that_the_loss_converts_or_masks(net: nn.Module, y: Tensor, loss: Any) -> None:
    assert list(findings(net, X, y, loss)) == []


PLACES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("label", "loss"),
    [
        (-100, F.cross_entropy),
        (-100, nn.CrossEntropyLoss()),
        (-100, factory.loss("cross_entropy")),
        (255, nn.CrossEntropyLoss(ignore_index=255)),
        (255, factory.loss("cross_entropy", ignore_index=255)),
        (255, partial(F.cross_entropy, ignore_index=255)),
        (255, lambda output, y: F.cross_entropy(output, y, ignore_index=255)),
        (-1, lambda output, y: F.cross_entropy(output.movedim(1, -1)[y >= 0], y[y >= 0])),
    ],
)
def test_labels_that_do_not_count(label: int, loss: Any) -> None:
    y = (PLACES[:, 0] > 0).long()
    y[:, 0] = label
    assert list(findings(nn.Conv2d(1, 3, 1), PLACES, y, loss)) == []
    y[:, 1] = 7
    wrong = only(nn.Conv2d(1, 3, 1), y, loss, PLACES)
    assert "but the net tells 3 classes apart: 0 to 2" in wrong.message


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), factory.loss("cross_entropy")])
def test_class_numbers_in_a_column(loss: Any) -> None:
    wrong = only(nn.Linear(8, 3), CLASSES[:, None], loss)
    assert "cross_entropy takes class numbers (32,) of int64, not targets (32, 1)" in wrong.message
    assert "y.squeeze(1)" in wrong.message


@pytest.mark.parametrize(
    ("net", "y", "loss", "told"),
    [
        (nn.Linear(8, 3), F.one_hot(CLASSES, 3), F.cross_entropy, "give y.argmax(1) of these one-hot ones"),
        (nn.Linear(8, 3), LABELS.long(), nn.CrossEntropyLoss(), "for several labels at once"),
        (
            nn.Linear(8, 3),
            CLASSES.int(),
            nn.CrossEntropyLoss(),
            "of int64, not targets (32,) of int32: give y.long()",
        ),
        (nn.Linear(8, 3), CLASSES.float(), lambda o, y: F.cross_entropy(o, y), "give y.long()"),
        (nn.Linear(8, 3), X[:, 0], F.cross_entropy, "for values use mse_loss"),
        (nn.Linear(8, 3), CLASSES[:30], F.cross_entropy, "(32,) of int64, not targets (30,)"),
        (nn.Linear(8, 1), CLASSES * 30, F.cross_entropy, "for values mse_loss, both with y.float()"),
        (
            number(),
            CLASSES,
            nn.HuberLoss(),
            "(32,) of float32, as the outputs are, not (32,) of int64: give y.float()",
        ),
        (number(), X[:, 0].double(), F.huber_loss, "of float64: give y.float()"),
        (number(), BINARY.long(), F.binary_cross_entropy_with_logits, "give y.float()"),
        (nn.Linear(8, 1), BINARY, F.binary_cross_entropy_with_logits, "give y.reshape(32, 1)"),
        (nn.Linear(8, 1), BINARY, factory.loss("mse"), "give y.reshape(32, 1)"),
        (nn.Linear(8, 3), CLASSES, nn.BCEWithLogitsLoss(), "for class numbers use cross_entropy"),
        (nn.Linear(8, 3), LABELS, nn.BCELoss(), "takes probabilities, and the net gives -"),
        (
            Ending(8, lambda z: z.view(32, 2, 4)),
            CLASSES[:, None].expand(32, 2),
            F.cross_entropy,
            "output.movedim(-1, 1)",
        ),
    ],
)
def test_targets_that_the_loss_refuses(net: nn.Module, y: Tensor, loss: Any, told: str) -> None:
    wrong = only(net, y, loss)
    assert told in wrong.message
    assert wrong.where == "data"


def broken(output: Tensor, y: Tensor) -> Tensor:
    raise IndexError(f"no {len(output)} and {len(y)} here\nand more")


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (broken, "(32, 3) of float32 with targets (32,) of int64: no 32 and 32 here."),
        (factory.loss("cross_entropy", weight=[1.0, 2.0]), "loss.weight: has 2 numbers for 3 classes"),
        (factory.loss("gaussian_nll"), "must have two numbers, mean and logarithm of the variance"),
        (partial(F.cross_entropy, reduction="none"), "gives numbers of shape (32,)"),
        (lambda output, y: (output.argmax(1) == y).float().mean(), "gives a number without a gradient"),
        (lambda output, y: F.cross_entropy(output, y).item(), "gives a float"),
    ],
)
def test_whatever_a_loss_raises_is_a_finding(loss: Any, told: str) -> None:
    wrong = only(nn.Linear(8, 3), CLASSES, loss)
    assert told in wrong.message
    assert wrong.where == "loss"


@pytest.mark.parametrize("y", [torch.zeros(32, dtype=torch.long), torch.full((32, 3), 0.5)])
def test_targets_that_are_all_the_same(y: Tensor) -> None:
    loss = F.mse_loss if y.is_floating_point() else F.cross_entropy
    assert only(nn.Linear(8, 3), y, loss).message.startswith("all targets are the same")
