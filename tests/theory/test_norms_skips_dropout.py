"""Dropout, skip connections and norms in mean-field theory, against closed forms and wide random nets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import acos, asin, inf, log, nan, pi, sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dlblocks
from dlblocks.errors import UserError
from dlblocks.theory.mean_field import MeanField, mean_field

VARIANCES = [0.01, 0.7, 50.0]


def arc_cosine(c: float) -> float:
    """Cho & Saul 2009: `2 E[relu(u) relu(v)]` at variance 1 and correlation c."""
    return (sqrt(1 - c * c) + (pi - acos(c)) * c) / pi


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_dropout_divides_second_moments_by_what_is_kept(p: float, q: float) -> None:
    theory = mean_field("relu", 1.7, 0.2, dropout=p)
    variance = 1.7 * q / 2 / (1 - p) + 0.2
    assert theory.variance(q) == pytest.approx(variance, rel=1e-9)
    assert theory.chi(q) == pytest.approx(1.7 / 2 / (1 - p), rel=1e-9)
    smooth = mean_field(torch.erf, 1.7, 0.2, dropout=p)
    size = 1.7 * 2 / pi * asin(2 * q / (1 + 2 * q)) / (1 - p) + 0.2
    assert smooth.variance(q) == pytest.approx(size, rel=1e-9)
    for c in (-0.5, 0.0, 0.9, 1.0):
        # The masks of two inputs are independent, so that what they share is not multiplied.
        assert theory.correlation(c, q) == pytest.approx(
            (1.7 * q / 2 * arc_cosine(c) + 0.2) / variance, abs=1e-8
        )
        shared = 1.7 * 2 / pi * asin(2 * q * c / (1 + 2 * q)) + 0.2
        assert smooth.correlation(c, q) == pytest.approx(shared / size, abs=1e-8)


def test_dropout_leaves_no_border_between_order_and_chaos() -> None:
    p = 0.1
    theory = mean_field("relu", 2 * (1 - p), dropout=p)  # keeps the variance
    assert theory.chi(1.0) == pytest.approx(1.0, rel=1e-9)
    c = theory.fixed_correlation(1.0)
    assert c == pytest.approx((1 - p) * arc_cosine(c), abs=1e-8)
    assert c < 0.9
    xi_q, xi_c = theory.depth_scales(1.0)
    assert xi_q == inf
    assert xi_c == pytest.approx(-1 / log((1 - p) * (1 - acos(c) / pi)), rel=1e-6)
    assert mean_field("relu", 2.0).depth_scales(1.0)[1] == inf
    # In the ordered phase, too, the same input given twice is not quite itself.
    biased = mean_field(torch.erf, 0.6, 0.2, dropout=p)
    q = biased.limit()
    c = biased.fixed_correlation(q)
    assert c < 1
    assert biased.correlation(c, q) == pytest.approx(c, abs=1e-8)


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize("s", [1.0, 0.3])
def test_skips_add_what_the_layer_gives(s: float, q: float) -> None:
    theory = mean_field("linear", 1.5, 0.1, residual=True, branch_scale=s)
    assert theory.variance(q) == pytest.approx(q + s**2 * (1.5 * q + 0.1), rel=1e-9)
    assert theory.chi(q) == pytest.approx(1 + s**2 * 1.5, rel=1e-9)
    assert theory.limit(q) == inf
    assert theory.fixed_points() == ()
    bent = mean_field("relu", 1.5, residual=True, branch_scale=s, dropout=0.2)
    variance = q + s**2 * 1.5 * q / 2 / 0.8
    assert bent.variance(q) == pytest.approx(variance, rel=1e-9)
    assert bent.chi(q) == pytest.approx(1 + s**2 * 1.5 / 2 / 0.8, rel=1e-9)
    for c in (-0.5, 0.0, 0.9):
        alike = q * c + s**2 * 1.5 * q / 2 * arc_cosine(c)
        assert bent.correlation(c, q) == pytest.approx(alike / variance, abs=1e-8)


def test_skips_without_anything_new_keep_everything() -> None:
    theory = mean_field("relu", 0.0, residual=True)
    assert theory.limit(0.7) == theory.variance(0.7) == 0.7
    assert theory.chi(0.7) == 1.0
    assert theory.correlation(0.3, 0.7) == pytest.approx(0.3)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norms_over_features_forget_the_variance(norm: str) -> None:
    theory = mean_field(torch.erf, 1.7, 0.2, norm=norm)
    kept = 1.7 * 2 / pi * asin(2 / 3) + 0.2
    for q in VARIANCES:
        assert theory.variance(q) == pytest.approx(kept, rel=1e-9)
        assert theory.chi(q) == pytest.approx(1.7 * 4 / pi / sqrt(5) / q, rel=1e-9)
        shared = 1.7 * 2 / pi * asin(2 * 0.4 / 3) + 0.2
        assert theory.correlation(0.4, q) == pytest.approx(shared / kept, abs=1e-9)
    (point,) = theory.fixed_points()
    assert (point.q, point.slope) == (pytest.approx(kept, rel=1e-9), 0.0)
    assert theory.limit(1e-9) == theory.limit(1e9) == point.q
    assert theory.depth_scales(point.q)[0] == 0.0
    # Whatever the scale of the weights, relu passes gradients on as they are.
    for weights in (0.01, 1.0, 30.0):
        relu = mean_field("relu", weights, norm=norm)
        assert relu.chi(relu.limit()) == pytest.approx(1.0, rel=1e-8)
    skipping = mean_field("relu", 1.0, residual=True, norm=norm)
    assert skipping.variance(3.0) == pytest.approx(3.5, rel=1e-9)
    assert skipping.chi(3.0) == pytest.approx(1 + 0.5 / 3, rel=1e-9)
    assert skipping.limit() == inf


@pytest.mark.parametrize("weights", [0.01, 2.0])
def test_batch_norm_makes_gradients_explode(weights: float) -> None:
    """Yang et al. 2019: relu's gradients grow by pi / (pi - 1) in large batches, linear ones do not."""
    relu = mean_field("relu", weights, norm="batch")
    q = relu.limit()
    assert q == pytest.approx(weights / 2, rel=1e-9)
    assert relu.fixed_correlation(q) == pytest.approx(1 / pi, rel=1e-9)
    assert relu.chi(q) == pytest.approx(pi / (pi - 1), rel=1e-8)
    assert relu.chi(q, c=0.5) == pytest.approx(2.0, rel=1e-8)
    assert relu.depth_scales(q) == (0.0, pytest.approx(-1 / log(0.25 / (0.5 - 0.5 / pi)), rel=1e-8))
    linear = mean_field("linear", weights, norm="batch")
    assert linear.chi(linear.limit()) == pytest.approx(1.0, rel=1e-8)
    assert linear.correlation(0.3, 1.0) == pytest.approx(0.3, abs=1e-9)
    odd = mean_field(torch.erf, weights, norm="batch")
    assert odd.chi(odd.limit()) == pytest.approx(2 / sqrt(5) / asin(2 / 3), rel=1e-8)


def test_batch_norm_with_dropout_and_skips() -> None:
    dropped = mean_field("relu", 1.0, 0.1, norm="batch", dropout=0.5)
    q = dropped.limit()
    assert q == pytest.approx(1.1, rel=1e-9)
    c = dropped.fixed_correlation(q)
    assert c == pytest.approx((0.5 / pi + 0.1) / 1.1, rel=1e-9)
    assert dropped.chi(q) == pytest.approx(1 / (1.1 * (1 - c)), rel=1e-8)
    assert dropped.correlation(c, q) == pytest.approx(c, abs=1e-9)
    skipping = mean_field("relu", 1.0, norm="batch", residual=True, branch_scale=0.5)
    assert skipping.variance(4.0) == pytest.approx(4 + 0.25 * 0.5, rel=1e-9)
    assert skipping.chi(4.0) == pytest.approx(1 + 0.25 * 0.5 / (4 * (1 - 1 / pi)), rel=1e-8)
    assert skipping.correlation(1 / pi, 4.0) == pytest.approx(1 / pi, abs=1e-9)


@dataclass
class Net:
    """Random layers around given pre-activations."""

    theory: MeanField
    activation: nn.Module

    def __call__(self, h: Tensor, depth: int) -> list[Tensor]:
        """The pre-activations, each with its gradient."""
        theory, width = self.theory, h.shape[-1]
        signals = [h.requires_grad_()]
        for _ in range(depth):
            weight = torch.randn(width, width, dtype=h.dtype) * sqrt(theory.weight_variance / width)
            bias = torch.randn(width, dtype=h.dtype) * sqrt(theory.bias_variance)
            x = F.dropout(self.activation(self.normed(h)), theory.dropout)
            new = theory.branch_scale * (x @ weight.T + bias)
            h = h + new if theory.residual else new
            signals.append(h)
        for signal in signals:
            signal.retain_grad()
        (h * torch.randn_like(h)).sum().backward()
        return signals

    def normed(self, h: Tensor) -> Tensor:
        if self.theory.norm == "batch":
            return F.batch_norm(h, None, None, training=True, eps=1e-12)
        if self.theory.norm == "layer":
            return F.layer_norm(h, h.shape[-1:], eps=0.0)
        return F.rms_norm(h, h.shape[-1:], eps=0.0) if self.theory.norm == "rms" else h


def batch(rows: int, width: int, q: float, c: float) -> Tensor:
    """Pre-activations of variance q, all pairs of correlation c."""
    own, common = (torch.randn(n, width, dtype=torch.float64) for n in (rows, 1))
    return sqrt(q) * (sqrt(c) * common + sqrt(1 - c) * own)


def measured(h: Tensor) -> tuple[float, float]:
    """Mean square, and mean correlation of all pairs."""
    h = h.detach()
    square, mean = float(h.square().mean()), float(h.mean(0).square().mean())
    return square, (mean - square / len(h)) / square * len(h) / (len(h) - 1)


SETTINGS = [
    {"dropout": 0.4},
    {"residual": True},
    {"residual": True, "branch_scale": 0.5, "dropout": 0.2},
    {"norm": "layer"},
    {"norm": "rms", "dropout": 0.3},
    {"norm": "layer", "residual": True},
    {"norm": "batch"},
    {"norm": "batch", "dropout": 0.3},
    {"norm": "batch", "residual": True, "branch_scale": 0.5},
]


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_wide_random_nets_do_what_theory_says(settings: dict[str, object], name: str) -> None:
    torch.manual_seed(0)
    theory = mean_field(name, 1.3, 0.2, **settings)
    net = Net(theory, dlblocks.activation(name).double())
    signals = net(batch(128, 1500, q=2.0, c=0.4), depth=2)
    for before, after in pairwise(signals):
        q, c = measured(before)
        got, alike = measured(after)
        assert got == pytest.approx(theory.variance(q), rel=0.05)
        assert before.grad is not None
        assert after.grad is not None
        backward = float(before.grad.square().mean() / after.grad.square().mean())
        assert backward == pytest.approx(theory.chi(q, c), rel=0.05)
        expected = theory.correlation(c, q)
        if theory.norm == "batch":  # that of the whole batch is gone, whatever it was
            common = theory.fixed_correlation(q)
            kept = q / got if theory.residual else 0.0
            expected = kept * c + (1 - kept) * common
        assert alike == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("c", [-0.2, 0.5, 0.95])
def test_pairs_of_a_batch_go_through_batch_norm_as_theory_says(c: float) -> None:
    torch.manual_seed(0)
    theory = mean_field("relu", 1.0, 0.05, norm="batch")
    q = theory.limit()
    common = theory.fixed_correlation(q)
    inner = (c - common) / (1 - common)
    first, second = torch.randn(2, 100, 2000, dtype=torch.float64)
    pairs = torch.cat([first, inner * first + sqrt(1 - inner**2) * second])
    shared = torch.randn(2000, dtype=torch.float64)
    h = sqrt(q) * (sqrt(common) * shared + sqrt(1 - common) * pairs)
    _, after = Net(theory, nn.ReLU())(h, depth=1)
    got = torch.cosine_similarity(after[:100], after[100:]).mean()
    assert float(got.detach()) == pytest.approx(theory.correlation(c, q), abs=0.02)


def test_no_two_inputs_of_a_batch_are_that_opposite() -> None:
    theory = mean_field("sigmoid", norm="batch")
    with pytest.raises(UserError, match=r"c=0\.0: no two inputs .* at least 0\.7"):
        theory.correlation(0.0, 1.0)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if self.training else x


REFUSED = [
    (nn.BatchNorm1d(64), "norm='batch'"),
    (nn.BatchNorm1d(7), "norm='batch'"),
    (nn.Sequential(nn.LayerNorm(64), nn.ReLU()), "its LayerNorm .* norm='batch', 'layer' or 'rms'"),
    (nn.Dropout(0.25), r"dropout=0\.25"),
    (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), r"its Dropout .* dropout=0\.5"),
    (nn.AlphaDropout(0.5), "alpha dropout"),
    (nn.Linear(64, 64), "weights of its own"),
    (nn.MultiheadAttention(64, 2), "weights of its own"),
    (lambda x: F.dropout(x, 0.5), "at random"),
    (lambda x: (x - x.mean(0)) / x.std(0), "depends on the others"),
    (nn.Softmax(0), "depends on the others"),
    (nn.RReLU(-1.0, 1.0), "in training than in evaluation"),
    (Halved(), "in training than in evaluation"),
    (nn.Softmax2d(), "can't be applied"),
    (nn.PReLU(7), "can't be applied"),
    (lambda x: x.sum(), "shape"),
    (lambda x: (x, x), "tuple"),
    (torch.log, "not finite"),
]


@pytest.mark.parametrize(("activation", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_activation_is_refused_with_the_cure(activation: object, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        mean_field(activation)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_of_nothing_and_parameters_for_each_feature_are_let_be() -> None:
    assert mean_field(nn.Sequential(nn.ReLU(), nn.Dropout(0.0)), 2.0).variance(1.0) == pytest.approx(1.0)
    assert mean_field(nn.PReLU(64)).variance(1.0) == pytest.approx((1 + 0.25**2) / 2, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"branch_scale": 0.5}, "residual=True"),
        ({"branch_scale": 0.0, "residual": True}, "branch_scale"),
        ({"branch_scale": nan, "residual": True}, "branch_scale"),
        ({"norm": "group"}, "none, batch, layer, rms"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mean_field("relu", **arguments)


@pytest.mark.parametrize("q", [-1.0, nan, inf])
def test_what_is_no_variance_is_refused(q: float) -> None:
    theory = mean_field("relu", 2.0)
    for call in (theory.variance, theory.chi, theory.limit, theory.fixed_correlation, theory.depth_scales):
        with pytest.raises(UserError, match="q="):
            call(q)


def test_correlations_are_checked() -> None:
    with pytest.raises(UserError, match=r"c=1\.5"):
        mean_field("relu").correlation(1.5, 1.0)
    with pytest.raises(UserError, match="gives 0"):
        mean_field("relu", 0.0).correlation(0.5, 1.0)


def test_a_signal_that_has_died_out_has_its_factor() -> None:
    theory = mean_field("tanh", 0.9)
    assert theory.chi(theory.limit()) == pytest.approx(0.9, rel=1e-9)
