"""Losses that don't fit what the net gives, and labels that don't fit the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlblocks.diagnosis.diagnose import diagnose
from dlblocks.diagnosis.ties import findings

F = nn.functional
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


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
