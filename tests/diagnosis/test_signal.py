"""What one batch shows: against closed forms and autograd, leaving no trace."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import dlblocks
from dlblocks.diagnosis.signal import measure
from dlblocks.errors import UserError

CROSS_ENTROPY = nn.functional.cross_entropy


def batch(rows: int = 128, features: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(rows, features, generator=draw)
    return x, (x @ torch.randn(features, classes, generator=draw)).argmax(1)


def net(activation: str = "relu", init: str = "he_normal", depth: int = 3, **params: object) -> nn.Module:
    built = dlblocks.model("mlp", (16,), 4, activation, depth=depth, width=24, **params)
    return dlblocks.initialize(built, init, generator=torch.Generator().manual_seed(0))


def test_a_linear_layer_by_hand() -> None:
    x, y = batch()
    layer = nn.Linear(16, 4)
    signal = measure(layer, x, y, CROSS_ENTROPY)
    (seen,) = signal.layers
    assert (seen.name, seen.kind) == ("", "Linear")
    assert seen.mean == pytest.approx(x.mean().item(), abs=1e-6)
    assert seen.deviation == pytest.approx(x.std(correction=0).item(), rel=1e-5)
    error = layer(x).softmax(1) - nn.functional.one_hot(y, 4)
    assert seen.gradient == pytest.approx((error.T @ x / len(x)).norm().item(), rel=1e-4)
    apart = error - error.mean(0)
    useful = (apart.T @ x / len(x)).norm().item()
    assert seen.useful == pytest.approx(useful, rel=1e-4)
    assert signal.speed == pytest.approx(useful**2 * len(x) / apart.square().sum().item(), rel=1e-4)
    assert signal.loss == pytest.approx(CROSS_ENTROPY(layer(x), y).item())


def test_cosines_of_all_pairs() -> None:
    x, y = batch(rows=12)
    (seen,) = measure(nn.Linear(16, 4), x, y, CROSS_ENTROPY).layers
    pairs = nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    assert seen.correlation == pytest.approx((pairs.sum() - 12).item() / (12 * 11), abs=1e-6)


def test_dimensions_by_the_eigenvalues_of_the_covariance() -> None:
    x, y = batch(rows=64)
    (seen,) = measure(nn.Linear(16, 4), x, y, CROSS_ENTROPY).layers
    spectrum = torch.linalg.eigvalsh(torch.cov(x.double().T))
    assert seen.dimensions == pytest.approx(float(spectrum.sum() ** 2 / spectrum.square().sum()), rel=1e-5)
    line = x[:, :1] * torch.arange(1.0, 17.0) + 3
    assert measure(nn.Linear(16, 4), line, y, CROSS_ENTROPY).layers[0].dimensions == pytest.approx(
        1, abs=1e-6
    )
    alike = torch.ones(64, 16)
    assert measure(nn.Linear(16, 4), alike, y, CROSS_ENTROPY).layers[0].dimensions == 0


def test_labels_that_can_be_learnt_align_and_random_ones_do_not() -> None:
    x, y = batch(512)
    learnable = measure(net(), x, y, CROSS_ENTROPY).alignment
    for seed in range(4):
        shuffled = y[torch.randperm(512, generator=torch.Generator().manual_seed(seed))]
        assert measure(net(), x, shuffled, CROSS_ENTROPY).alignment < learnable - 0.3


def test_identical_and_dead_and_saturated_units() -> None:
    x, y = batch()
    ones = measure(net("tanh", "ones"), x, y, CROSS_ENTROPY)
    assert [layer.identical for layer in ones.layers] == [1.0] * 4
    assert measure(net(), x, y, CROSS_ENTROPY).layers[0].identical == 0.0
    dead = net()
    nn.init.constant_(dead[0].bias, -100.0)
    seen = measure(dead, x, y, CROSS_ENTROPY).layers
    assert (seen[0].dead, seen[0].saturated) == (1.0, 1.0)
    assert seen[1].variation == 0.0
    assert seen[-1].dead is None
    wide = net("tanh")
    nn.init.normal_(wide[0].weight, std=100.0, generator=torch.Generator().manual_seed(0))
    first = measure(wide, x, y, CROSS_ENTROPY).layers[0]
    assert first.saturated is not None
    assert first.saturated > 0.95


@pytest.mark.parametrize("depth", [5, 10])
def test_gradients_fall_as_theory_says(depth: int) -> None:
    x, y = batch(256)
    wide = dlblocks.model("mlp", (16,), 4, "relu", depth=depth, width=512)
    dlblocks.initialize(
        wide, {"name": "variance_scaling", "scale": 0.5}, generator=torch.Generator().manual_seed(0)
    )
    layers = measure(wide, x, y, CROSS_ENTROPY).layers
    # chi is 0.25, and so is the factor of the signal: their product is the same at every layer.
    for before, after in pairwise(layers[1:-1]):
        assert after.deviation / before.deviation == pytest.approx(0.5, rel=0.2)
        assert after.gradient / before.gradient == pytest.approx(1.0, rel=0.35)


def test_no_trace_is_left() -> None:
    x, y = batch()
    built = net("prelu", norm="batch", dropout=0.3)
    built[0].eval()
    built(x).sum().backward()
    state, modes = copy.deepcopy(built.state_dict()), [part.training for part in built.modules()]
    gradients = [parameter.grad.clone() for parameter in built.parameters()]
    random_state = torch.get_rng_state()
    measure(built, x, y, CROSS_ENTROPY)
    assert all(torch.equal(state[name], value) for name, value in built.state_dict().items())
    assert [part.training for part in built.modules()] == modes
    assert all(torch.equal(old, p.grad) for old, p in zip(gradients, built.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(part._forward_hooks for part in built.modules())


def test_what_overflows_is_told() -> None:
    x, y = batch()
    built = net(depth=3)
    for layer in built:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 1e30)
    assert not measure(built, x, y, CROSS_ENTROPY).finite
    assert math.isfinite(measure(net(), x, y, CROSS_ENTROPY).loss)


def test_nets_that_can_not_be_measured() -> None:
    x, y = batch()
    with pytest.raises(UserError, match="no layer with weights"):
        measure(nn.ReLU(), x, y, CROSS_ENTROPY)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(UserError, match="gives tuple, not a tensor"):
        measure(Pair(), x, y, CROSS_ENTROPY)
