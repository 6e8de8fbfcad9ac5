"""What theory expects of whole nets, against closed formulas and against wide random nets, run and measured."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from math import inf, log, pi, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import dlblocks
from dlblocks.errors import UserError
from dlblocks.theory.chain import LAYERS
from dlblocks.theory.mean_field import mean_field
from dlblocks.theory.means import ByQuadrature
from dlblocks.theory.prediction import Prediction, predict
from dlblocks.theory.structure import structure_of


def filled(net: nn.Module, weights: float = 1.5, biases: float = 0.1, seed: int = 0) -> Any:
    """Independent weights and biases of these variances, weights times fan_in."""
    draw = torch.Generator().manual_seed(1000 + seed)
    for layer in net.modules():
        if isinstance(layer, LAYERS):
            nn.init.normal_(layer.weight, std=sqrt(weights / layer.weight[0].numel()), generator=draw)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=sqrt(biases), generator=draw)
    return net


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def measured(net: nn.Module, x: Tensor, *, dropout: bool) -> tuple[list[float], list[float]]:
    """The mean squares of each layer's pre-activations, and of gradients there, over that of the last layer's."""
    net = copy.deepcopy(net).train()
    made: list[Tensor] = []
    for part in net.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.train(dropout)
        if isinstance(part, nn.ReLU):
            part.inplace = False
        if isinstance(part, LAYERS):
            part.register_forward_hook(lambda *call: made.append(call[2]))
    net(x)
    found = torch.autograd.grad(made[-1], made, torch.randn_like(made[-1]))
    gradients = [float(one.square().mean()) for one in found]
    return [float(one.detach().square().mean()) for one in made], [one / gradients[-1] for one in gradients]


def agree(
    net: Any, x: Tensor, within: float, *, dropout: bool = True, biases: float = 0.1, draws: int = 4
) -> Prediction:
    """Compare what is predicted with what is measured, in the mean over some drawings of the weights."""
    torch.manual_seed(0)
    off = []
    for seed in range(draws):
        found = predict(filled(net, biases=biases, seed=seed), x, dropout=dropout)
        assert found.modelled, found.reason
        assert found.reason == ""
        squares, gradients = measured(net, x, dropout=dropout)
        assert len(found.layers) == len(squares)
        expected = [layer.variance for layer in found.layers], [layer.gradient for layer in found.layers]
        off.append((torch.tensor([squares, gradients]) / torch.tensor(expected)).log())
    mean = torch.stack(off).mean(0)
    assert float(mean.abs().max()) < within, mean
    return found


WIDE: dict[str, Callable[[int], list[nn.Module]]] = {
    "relu": lambda _: [nn.ReLU(inplace=True)],
    "tanh": lambda _: [nn.Tanh()],
    "gelu_dropout": lambda _: [nn.GELU(), nn.Dropout(0.3)],
    "sigmoid": lambda _: [nn.Sigmoid()],
    "prelu": lambda _: [nn.PReLU()],
    "prelu_each": lambda n: [nn.PReLU(n)],
    "glu": lambda _: [nn.GLU()],
    "softmax": lambda _: [nn.Softmax(-1)],
    "layer_norm": lambda n: [nn.LayerNorm(n), nn.SiLU()],
    "rms_norm_dropout": lambda n: [nn.RMSNorm(n), nn.ReLU(), nn.Dropout(0.2)],
    "group_norm": lambda n: [nn.GroupNorm(4, n), nn.Tanh()],
    "batch_norm": lambda n: [nn.BatchNorm1d(n), nn.ReLU()],
    "batch_norm_dropout": lambda n: [nn.BatchNorm1d(n), nn.Tanh(), nn.Dropout(0.3)],
    "layer_norm_behind": lambda n: [nn.ReLU(), nn.LayerNorm(n)],
    "layer_norm_behind_dropout": lambda n: [nn.ReLU(), nn.Dropout(0.4), nn.LayerNorm(n)],
    "batch_norm_behind": lambda n: [nn.ReLU(), nn.BatchNorm1d(n)],
    "none": lambda _: [],
}


@pytest.mark.parametrize("kind", WIDE)
def test_wide_mlps_do_what_is_predicted(kind: str) -> None:
    width = 1600
    made = WIDE[kind](width)
    given = width // 2 if kind == "glu" else width
    net = nn.Sequential(
        nn.Linear(30, width), *WIDE[kind](width), nn.Linear(given, width), *made, nn.Linear(given, 400)
    )
    found = agree(net, inputs(100, 30), within=0.05, draws=2)
    assert found.layers[0].name == "0"
    assert {layer.kind for layer in found.layers} == {"Linear"}
    for layer in found.layers:
        assert layer.weight_variance == pytest.approx(1.5, rel=0.05)
        assert layer.bias_variance == pytest.approx(0.1, rel=0.25)


def test_instances_of_different_sizes_are_followed_one_by_one() -> None:
    net = nn.Sequential(nn.Linear(50, 2000), nn.Tanh(), nn.Linear(2000, 500))
    x = inputs(60, 50) * torch.logspace(-2, 2, 60)[:, None]
    x[0] = 0.0
    agree(net, x, within=0.05, biases=0.0)


def test_inputs_of_zero_have_the_slope_at_zero() -> None:
    net = nn.Sequential(nn.Linear(50, 500), nn.ReLU(), nn.Linear(500, 400))
    x = inputs(40, 50)
    x[20:] = 0.0
    agree(net, x, within=0.1, biases=0.0)  # relu's slope there is 0, not a half


def test_dropout_is_that_of_training_unless_it_is_left_out() -> None:
    layers = (nn.Linear(400, 1500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1500, 300))
    net = nn.Sequential(nn.Dropout(0.5), *layers).eval()
    x = inputs(50, 400)
    dropped = agree(net, x, within=0.05)
    kept = agree(net, x, within=0.05, dropout=False)
    for with_it, without in zip(dropped.layers, kept.layers, strict=True):
        assert with_it.variance is not None
        assert without.variance is not None
        assert with_it.variance > 1.5 * without.variance
    assert dropped.layers[0].gradient == pytest.approx(2 * (kept.layers[0].gradient or 0.0), rel=1e-9)


CONV: dict[str, Callable[[int], list[nn.Module]]] = {
    "tanh": lambda _: [nn.Tanh()],
    "group_norm": lambda n: [nn.GroupNorm(1, n), nn.ReLU()],
    "dropout": lambda _: [nn.GELU(), nn.Dropout2d(0.3)],
    "glu": lambda _: [nn.GLU(1)],
    "prelu": lambda n: [nn.PReLU(n)],
    "max_pool": lambda _: [nn.ReLU(), nn.MaxPool2d(2)],
    "avg_pool": lambda _: [nn.ReLU(), nn.AvgPool2d(2)],
    "batch_norm_pool": lambda n: [nn.BatchNorm2d(n), nn.ReLU(), nn.MaxPool2d(2)],
    "dropout_pool": lambda _: [nn.Tanh(), nn.Dropout2d(0.4), nn.MaxPool2d(2)],
    "norm_dropout_pool": lambda n: [nn.GroupNorm(1, n), nn.SiLU(), nn.Dropout2d(0.4), nn.MaxPool2d(2)],
}


@pytest.mark.parametrize("kind", CONV)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_convolutions_do_place_by_place_what_is_predicted(kind: str, padding: str) -> None:
    n, given = 256, 128 if kind == "glu" else 256
    net = nn.Sequential(
        nn.Conv2d(3, n, 3, padding=1, padding_mode=padding),
        *CONV[kind](n),
        nn.Conv2d(given, n, 3, stride=1 if "pool" in kind else 2, padding=1, padding_mode=padding),
        *CONV[kind](n),
        nn.Flatten(),
        nn.Linear(given * 9, 800),
    )
    x = F.avg_pool2d(inputs(48, 3, 12, 12), 3, 1, 1)  # neighbours are alike
    x = x[..., : 6 if "pool" not in kind else 12, : 6 if "pool" not in kind else 12]
    agree(net, x, within=0.1)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "maxout"])
def test_our_own_nets_are_modelled(activation: str, norm: str) -> None:
    pictures = inputs(32, 3, 8, 8)
    conv = dlblocks.model("convnet", (3, 8, 8), 500, activation, channels=(128, 256), norm=norm, dropout=0.1)
    agree(conv, pictures, within=0.1, draws=6)
    mlp = dlblocks.model("mlp", (3, 8, 8), 500, activation, width=1000, norm=norm, dropout=0.1)
    agree(mlp, pictures, within=0.1)


def test_tokens_and_sequences_are_modelled() -> None:
    net = nn.Sequential(
        nn.Embedding(40, 256),
        nn.Linear(256, 1200),
        nn.LayerNorm(1200),
        nn.GELU(),
        nn.Linear(1200, 1200),
        nn.Tanh(),
        nn.Linear(1200, 300),
    )
    nn.init.normal_(net[0].weight, generator=torch.Generator().manual_seed(2))
    agree(net, torch.arange(120).reshape(8, 15) % 40, within=0.05)
    over = nn.Sequential(nn.Conv1d(20, 500, 3), nn.Tanh(), nn.Conv1d(500, 400, 5, dilation=2))
    agree(over, inputs(8, 20, 30), within=0.05)


def test_one_hidden_layer_is_the_closed_formula() -> None:
    net = nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, 7))
    x = inputs(9, 30)
    found = predict(net, x)
    first, second = net[0], net[3]
    w1, w2 = (float(layer.weight.detach().square().mean()) for layer in (first, second))
    b1, b2 = (float(layer.bias.detach().square().mean()) for layer in (first, second))
    q1 = w1 * float(x.square().sum(1).mean()) + b1
    q2 = w2 * 50 * q1 / 2 / 0.8 + b2
    assert [layer.variance for layer in found.layers] == pytest.approx([q1, q2], rel=1e-5)
    assert [layer.gradient for layer in found.layers] == pytest.approx([7 * w2 / 2 / 0.8, 1.0], rel=1e-5)
    assert found.scatter == pytest.approx(sqrt(5 / 50))
    assert (found.fixed_variance, found.chi, found.depth_scale) == (None, None, None)


def test_scatter_is_what_narrow_nets_show() -> None:
    width, depth, draws = 48, 8, 400
    torch.manual_seed(0)
    x = torch.randn(draws, width, 1)
    for _ in range(depth):
        x = (torch.randn(draws, width, width) * sqrt(2 / width)) @ x
        h, x = x, x.relu()
    seen = float(h.square().mean((1, 2)).log().std())
    net = nn.Sequential(
        *[part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())], nn.Linear(width, 1)
    )
    assert predict(net, torch.randn(3, width)).scatter == pytest.approx(seen, rel=0.2)


@pytest.mark.parametrize("weights", [0.8, 2.5])
def test_deep_nets_have_the_fixed_point_and_depth_scale_of_their_layers(weights: float) -> None:
    net = filled(dlblocks.model("mlp", (20,), 5, "tanh", width=400, depth=6), weights, 0.05)
    found = predict(net, inputs(30, 20))
    hidden = found.layers[1:-1]
    theory = mean_field(
        "tanh",
        sum(layer.weight_variance for layer in hidden) / len(hidden),
        sum(layer.bias_variance for layer in hidden) / len(hidden),
    )
    q = theory.limit()
    assert found.fixed_variance == pytest.approx(q, rel=1e-6)
    assert found.chi == pytest.approx(theory.chi(q), rel=1e-6)
    assert found.depth_scale == pytest.approx(1 / abs(log(theory.chi(q))), rel=1e-5)
    assert hidden[-1].variance == pytest.approx(q, rel=0.15)


def test_the_depth_scale_knows_norms_and_dropout() -> None:
    x = inputs(40, 20)
    batch = filled(dlblocks.model("mlp", (20,), 5, "relu", width=300, depth=4, norm="batch"), 2.0, 0.0)
    found = predict(batch, x)
    assert found.chi == pytest.approx(pi / (pi - 1), rel=1e-6)
    layer = filled(dlblocks.model("mlp", (20,), 5, "relu", width=300, depth=4, norm="layer"), 2.0, 0.0)
    found = predict(layer, x)
    assert found.chi == pytest.approx(1.0, rel=1e-6)
    assert found.depth_scale == inf
    dropped = filled(dlblocks.model("mlp", (20,), 5, "relu", width=300, depth=4, dropout=0.5), 2.0, 0.0)
    found = predict(dropped, x)
    assert found.fixed_variance == inf
    assert found.chi == pytest.approx(2.0, rel=0.02)
    found = predict(dropped, x, dropout=False)
    assert found.chi == pytest.approx(1.0, rel=0.02)


def test_nets_of_unlike_layers_have_no_common_depth_scale() -> None:
    x = inputs(30, 20)
    net = filled(dlblocks.model("mlp", (20,), 5, "tanh", width=200, depth=5))
    assert predict(net, x).chi is not None
    other = copy.deepcopy(net)
    nn.init.normal_(other[4].weight, std=2 / sqrt(200))
    assert (predict(other, x).modelled, predict(other, x).chi) == (True, None)
    net[3] = nn.ReLU()
    assert (predict(net, x).modelled, predict(net, x).chi) == (True, None)


def test_very_small_and_large_signals_are_followed() -> None:
    for weights in (1e-4, 1e4):
        net = filled(dlblocks.model("mlp", (20,), 5, "relu", width=256, depth=20), weights, 0.0).double()
        found = predict(net, inputs(10, 20).double())
        q = float(inputs(10, 20).square().mean())
        for depth, layer in enumerate(found.layers):
            expected = log(q) + log(weights) + depth * log(weights / 2)
            assert log(layer.variance or 0.0) == pytest.approx(expected, abs=0.5)


def test_a_prediction_is_plain_numbers() -> None:
    net = filled(dlblocks.model("mlp", (20,), 5, "tanh", width=64, depth=3))
    found = predict(net, inputs(30, 20))
    assert json.loads(json.dumps(asdict(found))) == json.loads(
        json.dumps(asdict(predict(net, inputs(30, 20))))
    )
    numbers = [found.scatter, found.fixed_variance, found.chi, found.depth_scale]
    for layer in found.layers:
        numbers += [layer.weight_variance, layer.bias_variance, layer.variance, layer.gradient]
    assert all(type(number) is float for number in numbers)


def test_means_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.atan(x)

    net = filled(nn.Sequential(nn.Linear(20, 50), Own(), nn.Linear(50, 50), Own(), nn.Linear(50, 5)))
    calls = []
    original = ByQuadrature.moments
    monkeypatch.setattr(ByQuadrature, "moments", lambda *given: calls.append(1) or original(*given))
    x = inputs(30, 20)
    first = predict(net[:3], x)
    assert calls
    calls.clear()
    assert predict(net[:3], x) == first
    assert not calls


def test_activations_of_other_parameters_are_told_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self._scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return self._scale * x

    x = inputs(10, 30)
    layers = filled(nn.Sequential(nn.Linear(30, 200), nn.Linear(200, 100)), 1.0, 0.0)
    one, three = (predict(nn.Sequential(layers[0], Scaled(scale), layers[1]), x) for scale in (1.0, 3.0))
    assert three.layers[1].variance == pytest.approx(9 * (one.layers[1].variance or 0.0), rel=1e-6)
    own = nn.PReLU(1, 0.5)
    net = nn.Sequential(layers[0], own, layers[1])
    before = predict(net, x).layers[1].variance
    nn.init.constant_(own.weight, 1.0)
    assert predict(net, x).layers[1].variance == pytest.approx((before or 0.0) * 2 / 1.25, rel=1e-5)


def test_no_trace_is_left() -> None:
    net = filled(
        nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Dropout(0.3), nn.Flatten(), nn.Linear(256, 5)),
        )
    )
    net[1].eval()
    net[0].weight.requires_grad_(False)
    x = inputs(20, 3, 8, 8)
    net(x).sum().backward()
    state = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    gradients = [copy.deepcopy(parameter.grad) for parameter in net.parameters()]
    random_state = torch.get_rng_state()
    assert predict(net, x).modelled
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    for old, parameter in zip(gradients, net.parameters(), strict=True):
        assert (old is None and parameter.grad is None) or torch.equal(old, parameter.grad)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert net[2].inplace
    assert not net[0].weight.requires_grad


def test_frozen_nets_and_weights_made_of_others_are_modelled() -> None:
    net = filled(
        nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 50)
        )
    )
    expected = predict(net, inputs(20, 3, 8, 8))
    assert predict(net.requires_grad_(False), inputs(20, 3, 8, 8)) == expected
    plain = filled(nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 300)))
    expected = predict(plain, inputs(60, 100))
    parametrizations.weight_norm(plain[0])
    assert predict(plain, inputs(60, 100)).layers[0].variance == pytest.approx(
        expected.layers[0].variance, rel=1e-5
    )
    parametrizations.spectral_norm(plain[2])
    found = predict(plain, inputs(60, 100))
    assert found.modelled
    assert found.layers[1].variance == pytest.approx(
        float(plain(inputs(60, 100)).detach().square().mean()), rel=0.15
    )


# What theory does not model.


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 40), nn.Linear(40, 40), nn.Linear(40, 5)
        self.act, self.drop = nn.ReLU(), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.mixed(self.first(x)))

    def mixed(self, h: Tensor) -> Tensor:
        return h + self.second(self.act(h))


class InPlaceSkip(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        out = self.second(self.act(h))
        out += h
        return out


class Function(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        return torch.relu(self.second(h))


class InPlaceFunction(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        return torch.relu_(self.second(h))


class AroundDropout(Skip):
    """Dropout gives its very input when it is off."""

    def mixed(self, h: Tensor) -> Tensor:
        self.second(self.drop(h))
        return h


class Detached(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        return self.second(self.act(h)).detach()


class Turned(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        return self.second(self.act(h)).T.reshape(-1, 40)


class Transposed(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        return self.second(self.act(h))[:40].T


class SkipAtTheEnd(Skip):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(self.act(h)) + h


class Twice(Skip):
    def mixed(self, h: Tensor) -> Tensor:
        return self.second(self.act(self.second(h)))


class Several(Skip):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x)
        return h, self.second(self.act(h))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(20, 40), nn.MultiheadAttention(40, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.attention(h, h, h)[0]


def mlp(*middle: nn.Module, **settings: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 40, **settings), *middle, nn.Linear(40, 5))


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    net[2].weight = net[0].weight
    return net


def exchanged() -> nn.Module:
    net = mlp(nn.ReLU())
    net[1].register_forward_hook(lambda *call: 2 * call[2])
    return net


def exchanged_input() -> nn.Module:
    net = mlp(nn.ReLU())
    net[1].register_forward_pre_hook(lambda _, given: (2 * given[0],))
    return net


def with_weights(name: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    dlblocks.initializer(name)(net[2].weight)
    return net


def scaled_norm() -> nn.Module:
    net = mlp(nn.LayerNorm(40), nn.ReLU())
    nn.init.uniform_(net[1].weight)
    return net


def shifted_norm() -> nn.Module:
    net = mlp(nn.BatchNorm1d(40), nn.ReLU())
    nn.init.constant_(net[1].bias, 1.0)
    return net


def shifted() -> nn.Module:
    net = mlp(nn.Tanh())
    nn.init.constant_(net[0].bias, 1.0)
    return net


def centred() -> nn.Module:
    net = mlp(nn.Sigmoid())
    with torch.no_grad():
        net[0].bias.copy_(-0.9 * net[0].weight.sum(1))
    return net


ONE_DIRECTION = torch.linspace(-1, 1, 64)[:, None] * torch.ones(20)
X = inputs(64, 20)
PICTURES = inputs(20, 3, 8, 8)

UNMODELLED: dict[str, tuple[nn.Module, Tensor, str]] = {
    "skip": (Skip(), X, "third .*sum"),
    "in-place skip": (InPlaceSkip(), X, "third .*sum"),
    "function": (Function(), X, "third .*function"),
    "in-place function": (InPlaceFunction(), X, "third .*function"),
    "branch around dropout": (AroundDropout(), X, "third .*branches"),
    "detached": (Detached(), X, "third .*detached"),
    "turned": (Turned(), X, "third"),
    "transposed": (Transposed(), X, "third"),
    "skip at the end": (SkipAtTheEnd(), X, "After second .*sum"),
    "called twice": (Twice(), X, "second .*several times"),
    "several outputs": (Several(), X, "After second"),
    "attention": (Attention(), inputs(8, 6, 20), "attention .*one tensor"),
    "recurrence": (nn.Sequential(nn.LSTM(20, 20)), X, "no linear layer"),
    "weights before": (nn.Sequential(nn.Bilinear(20, 20, 20)), X, "no linear layer"),
    "encoder": (nn.TransformerEncoderLayer(20, 2, 64), inputs(8, 6, 20), "."),
    "tied": (tied(), X, "2 .*several times"),
    "hook": (exchanged(), X, "2 .*outside of modules"),
    "hook before": (exchanged_input(), X, "1 .*one tensor"),
    "zeros": (with_weights("zeros"), X, "2 .*are 0"),
    "ones": (with_weights("ones"), X, "2 .*are the same"),
    "identity": (with_weights("identity"), X, "2 .*one or two of its inputs"),
    "trained scale": (scaled_norm(), X, "1 .*scales differ"),
    "trained shift": (shifted_norm(), X, "1 .*shifts"),
    "biases of one sign": (shifted(), X, "biases don't have mean 0"),
    "biases that follow weights": (centred(), X + 1, "biases depend"),
    "few instances": (mlp(nn.BatchNorm1d(40), nn.ReLU()), X[:8], "1 .*too few instances"),
    "one direction": (mlp(nn.BatchNorm1d(40), nn.ReLU()), ONE_DIRECTION, "1 .*one direction"),
    "batch norm behind dropout": (
        mlp(nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(40)),
        X,
        "3 .*behind dropout",
    ),
    "narrow": (nn.Sequential(nn.Linear(20, 3), nn.ReLU(), nn.Linear(3, 5)), X, "0 .*too few outputs"),
    "narrow groups": (mlp(nn.GroupNorm(10, 40), nn.ReLU()), X, "1 .*many features"),
    "alpha dropout": (mlp(nn.SELU(), nn.AlphaDropout(0.2)), X, "2 .*keeps mean and variance"),
    "all dropped": (mlp(nn.ReLU(), nn.Dropout(1.0)), X, "2 .*everything"),
    "two activations": (mlp(nn.ReLU(), nn.Tanh()), X, "2 .*not nearly Gaussian"),
    "activation behind dropout": (mlp(nn.Dropout(0.5), nn.Tanh()), X, "2 .*not nearly Gaussian"),
    "noise": (mlp(nn.RReLU(-1.0, 1.0)), X, "1 .*none of the modules"),
    "unknown": (mlp(nn.Unflatten(1, (4, 10)), nn.Flatten()), X, "1 .*none of the modules"),
    "activation over instances": (mlp(nn.Softmax(0)), X, "1 .*none of the modules"),
    "transposed convolution": (
        nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 8, 3), nn.Flatten(), nn.Linear(512, 5)
        ),
        PICTURES,
        "2 .*none of the modules",
    ),
    "groups": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Flatten()),
        PICTURES,
        "2 .*in groups",
    ),
    "windows that overlap": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "2 .*overlap",
    ),
    "adaptive windows that overlap": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "2 .*overlap",
    ),
    "pooling before the activation": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "2 .*not nearly Gaussian",
    ),
    "single numbers dropped before pooling": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.1), nn.AvgPool2d(2), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "3 .*dropout of single numbers",
    ),
    "instance norm": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16), nn.ReLU(), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "1 .*none of the modules",
    ),
    "layer norm of rows": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.LayerNorm(6), nn.ReLU(), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "1 .*many features",
    ),
    "linear over places": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Linear(6, 4)),
        PICTURES,
        "2 .*dimension",
    ),
    "gate over places": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.GLU(-1), nn.Conv2d(16, 9, 1)),
        PICTURES,
        "1 .*features",
    ),
    "single picture": (nn.Sequential(nn.Conv2d(3, 16, 3)), PICTURES[0], "0 .*single instance"),
    "infinite input": (mlp(nn.ReLU()), X / 0.0, "0 .*not finite"),
    "no instances": (mlp(nn.ReLU()), X[:0], "0 .*there are none"),
}


@pytest.mark.parametrize("case", UNMODELLED)
def test_what_is_not_modelled_is_told(case: str) -> None:
    net, x, message = UNMODELLED[case]
    found = predict(net, x)
    assert not found.modelled
    assert re.search(message, found.reason), found.reason
    assert found.reason.endswith(".")
    assert "\n" not in found.reason
    # Up to there it may be known what the signal does; of gradients nothing is.
    assert all(layer.gradient is None for layer in found.layers)
    assert (found.scatter, found.fixed_variance, found.chi, found.depth_scale) == (None,) * 4


def test_layers_before_the_end_of_the_theory_have_their_variance() -> None:
    found = predict(Skip(), X)
    assert [layer.name for layer in found.layers] == ["first", "second", "third"]
    assert [layer.variance is None for layer in found.layers] == [False, False, True]


def test_trained_weights_are_not_taken_for_random_ones() -> None:
    net = filled(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)))
    y = X[:, :5] * 3
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(net(X), y).backward()
        optimizer.step()
    found = predict(net, X)
    assert not found.modelled
    assert "0 (Linear)" in found.reason or "2 (Linear)" in found.reason


def test_a_net_that_cannot_be_run_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="can't be run on this input"):
        predict(mlp(nn.ReLU()), inputs(4, 7))
    with pytest.raises(UserError, match="lazy"):
        predict(nn.Sequential(nn.LazyLinear(5)), X)


RANDOM = [
    *("he_normal", "he_uniform", "glorot_uniform", "lecun_normal", "normal", "uniform", "truncated_normal"),
    *("orthogonal", "kaiming_uniform"),
]
SHAPES = [
    (1, 4),
    (1, 128),
    (10, 128),
    (128, 4),
    (128, 1),
    (3, 5),
    (8, 8),
    (32, 32),
    (128, 128),
    (32, 3, 3, 3),
]


@pytest.mark.parametrize("name", RANDOM)
def test_independent_draws_are_taken_for_such(name: str) -> None:
    for shape in SHAPES:
        for seed in range(20):
            weight = torch.empty(shape)
            dlblocks.initializer(name)(weight, generator=torch.Generator().manual_seed(seed))
            assert structure_of(weight) is None, shape


def test_places_of_a_kernel_may_have_variances_of_their_own() -> None:
    weight = torch.empty(64, 32, 3, 3)
    dlblocks.initializer("delta_orthogonal")(weight)
    assert structure_of(weight) is None


def structured() -> dict[str, Tensor]:
    draw = inputs(64, 48)
    return {
        "rank 1": draw[:, :1] * draw[:1],
        "rank 10": draw[:, :10] @ draw[:10],
        "pairs of rows": draw[:32].repeat(2, 1),
        "pairs of columns": draw[:, :24].repeat(1, 2),
        "one row": draw[:1].repeat(64, 1),
        "mean of 1": draw + 1,
        "rows that sum to 0": draw - draw.mean(1, keepdim=True),
        "near the identity": torch.eye(64) + 0.01 * inputs(64, 64),
        "half of the rows 0": draw * (torch.arange(64) % 2)[:, None],
        "few inputs": draw * (torch.arange(48) < 12),
        "not finite": draw / 0.0,
        "whole numbers": draw.long(),
    }


@pytest.mark.parametrize("case", structured())
def test_structure_is_seen(case: str) -> None:
    assert structure_of(structured()[case]) is not None
