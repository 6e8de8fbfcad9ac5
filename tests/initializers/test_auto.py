"""init=auto: signal and gradient pass through nets of any activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY, names

ELEMENTWISE = [n for n in names("activation") if REGISTRY.get("activation", n).tags["elementwise"]]


def inputs(rows: int = 256, features: int = 32) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(1))


def made(activation: str, depth: int, x: Tensor | None = None) -> nn.Module:
    net = dlblocks.model("mlp", (32,), 5, activation, depth=depth, width=48)
    return dlblocks.initialize(
        net, "auto", generator=torch.Generator().manual_seed(0), batch=inputs() if x is None else x
    )


@pytest.mark.parametrize("name", names("activation"))
def test_signal_and_gradient_pass_through_thirty_layers(name: str) -> None:
    if name == "log_softmax":
        pytest.skip("sums to a constant over the units, so no layer of it can be followed by theory")
    net = made(name, 30)
    outputs = net(inputs())
    assert outputs.std().item() == pytest.approx(0.1, rel=0.5)
    apart = outputs - outputs.mean(0)
    assert apart.std() > 0.2 * outputs.std()
    outputs.square().sum().backward()
    weights = [layer.weight.grad for layer in net.modules() if isinstance(layer, nn.Linear)]
    relative = [
        (layer.weight.grad.norm() * layer.weight.norm()).item()  # does not depend on the layers' scales
        for layer in net.modules()
        if isinstance(layer, nn.Linear) and layer.weight.grad is not None
    ]
    assert len(weights) == 31
    assert max(relative) < 100 * min(relative)


def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    # Pixels that are hardly ever set become outliers.
    return torch.tensor((x - x.mean(0)) / (x.std(0) + 1e-9), dtype=torch.float32), torch.tensor(y)


def accuracy_after(net: nn.Module, steps: int, lr: float) -> float:
    """Of a net that learns the digits, on those it has not seen."""
    x, y = digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        rows = slice(64 * step % 1408, 64 * step % 1408 + 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return (net(x[1472:]).argmax(1) == y[1472:]).float().mean().item()


@pytest.mark.parametrize("name", ["exponential", "squared_relu", "star_relu", "sigmoid", "softplus"])
def test_thirty_layers_learn(name: str) -> None:
    net = dlblocks.model("mlp", (64,), 10, name, depth=30, width=64)
    dlblocks.initialize(net, "auto", generator=torch.Generator().manual_seed(0), batch=digits()[0][:256])
    assert accuracy_after(net, 100, lr=3e-4) > 0.5


class Deep(nn.Module):
    """Layers with an activation after each, which is called in the code, and a skip around each if asked for."""

    def __init__(self, activation: Callable[[Tensor], Tensor], depth: int, skip: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(depth - 1)])
        self.last = nn.Linear(64, 10)
        self.activation, self.skip = activation, skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        for layer in self.layers:
            x = x + self.activation(layer(x)) if self.skip else self.activation(layer(x))
        out: Tensor = self.last(x)
        return out


class MySigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))


class MySwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


# What is called, and the module that does the same.
WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "torch.sigmoid": (torch.sigmoid, nn.Sigmoid()),
    "x.sigmoid()": (lambda x: x.sigmoid(), nn.Sigmoid()),
    "MySigmoid": (MySigmoid(), nn.Sigmoid()),
    "F.softplus": (nn.functional.softplus, nn.Softplus()),
    "F.elu(alpha)": (partial(nn.functional.elu, alpha=0.5), nn.ELU(0.5)),
    "MySwish": (MySwish(), nn.SiLU()),
    "relu_": (torch.relu_, nn.ReLU()),
    "F.gelu": (nn.functional.gelu, nn.GELU()),
    "exp": (torch.exp, dlblocks.activation("exponential")),
}


def deep(activation: Callable[[Tensor], Tensor], depth: int = 30, skip: bool = False) -> Deep:
    net = Deep(activation, depth, skip)
    dlblocks.initialize(net, "auto", generator=torch.Generator().manual_seed(0), batch=digits()[0][:256])
    return net


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("skip", [False, True])
def test_a_function_or_a_module_of_ones_own_gets_the_weights_of_the_module(how: str, skip: bool) -> None:
    written, module = WRITTEN[how]
    net, reference = deep(written, 6, skip), deep(module, 6, skip)
    for layer, other in zip(
        [net.first, *net.layers, net.last], [reference.first, *reference.layers, reference.last], strict=True
    ):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.bias, other.bias, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", WRITTEN)
def test_signal_and_gradient_pass_through_thirty_calls(how: str) -> None:
    net = deep(WRITTEN[how][0])
    x, y = digits()
    seen: list[Tensor] = []
    for layer in net.layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    nn.functional.cross_entropy(net(x[:256]), y[:256]).backward()
    # The share of what differs between inputs.
    assert min(float(h.var(0).mean() / h.square().mean()) for h in seen) > 0.01
    first, last = net.layers[0].weight, net.layers[-1].weight
    assert first.grad is not None
    assert last.grad is not None
    ratio = (first.grad.norm() * first.norm() / (last.grad.norm() * last.norm())).item()
    assert 0.1 < ratio < 10


@pytest.mark.parametrize("how", ["MySigmoid", "F.softplus"])
def test_thirty_calls_learn(how: str) -> None:
    assert accuracy_after(deep(WRITTEN[how][0]), 60, lr=1e-3) > 0.5


def test_an_activation_that_needs_places_or_as_many_channels_is_no_error() -> None:
    for activation in (nn.Softmax(dim=3), nn.Softmax2d(), nn.PReLU(4)):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), activation, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
        )
        dlblocks.initialize(net, "auto", batch=inputs(64, 64).reshape(64, 1, 8, 8))
        assert net(inputs(64, 64).reshape(64, 1, 8, 8)).std().item() == pytest.approx(0.1, rel=0.1)


def test_what_is_compiled_is_seen_as_it_is_written() -> None:
    compiled: Callable[[Tensor], Tensor] = torch.compile(lambda x: torch.sigmoid(x), backend="eager")
    net, reference = deep(compiled, 2), deep(torch.sigmoid, 2)
    assert torch.equal(net.last.weight, reference.last.weight)
    assert torch.equal(net.last.bias, reference.last.bias)


@pytest.mark.parametrize("groups", [1, 4])
def test_layers_between_activations_that_outgrow_lines_turn_each_unit(groups: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        dlblocks.activation("squared_relu"),
        nn.Conv2d(8, 8, 3, padding=1, groups=groups),
        dlblocks.activation("squared_relu"),
        nn.Conv2d(8, 4, 3, padding=1),
        dlblocks.activation("squared_relu"),
        nn.Flatten(),
        nn.Linear(256, 3),
    )
    x = inputs(64, 64).reshape(64, 1, 8, 8)
    dlblocks.initialize(net, "auto", generator=torch.Generator().manual_seed(0), batch=x)
    turned = net[2].weight[:, :, 1, 1]
    block = 8 // groups
    assert turned.count_nonzero() == net[2].weight.count_nonzero() == 8
    assert all(turned[unit, unit % block] == turned[0, 0] < 0 for unit in range(8))
    assert net[4].weight.count_nonzero() > 200  # fewer outputs than inputs: at random


def test_relu_gets_the_variance_of_he() -> None:
    net = made("relu", 3)
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers[1:-1]:
        assert layer.weight.var().item() * layer.in_features == pytest.approx(2.0, rel=0.25)
        assert layer.bias.abs().max() < 1e-6


def test_every_layer_has_the_variance_of_its_point_on_the_batch() -> None:
    x = 3.0 + 10.0 * inputs()
    net = made("tanh", 8, x)
    seen: list[Tensor] = []
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, __, output: seen.append(output))
    net(x)
    for h in seen[:-1]:
        assert (h - h.mean(0)).square().mean().item() < 1.05
        assert h.square().mean().item() == pytest.approx(1.0, abs=0.5)


def test_the_batch_need_not_be_of_any_scale() -> None:
    for scale in (1e-4, 1e4):
        assert made("sigmoid", 5, scale * inputs())(scale * inputs()).std().item() == pytest.approx(
            0.1, rel=0.3
        )


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_convolutions_with_and_without_norm(norm: str) -> None:
    net = dlblocks.model("convnet", (1, 8, 8), 3, "tanh", channels=[8, 8, 8, 8], norm=norm)
    before = {name: value.clone() for name, value in net.named_buffers()}
    x = inputs(64, 64).reshape(64, 1, 8, 8)
    dlblocks.initialize(net, "auto", generator=torch.Generator().manual_seed(0), batch=x)
    assert all(torch.equal(before[name], value) for name, value in net.named_buffers())
    net.train()
    assert 0.03 < net(x).std().item() < 0.3


def test_layers_before_a_sum_share_a_variance() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    net = nn.Sequential(*[Residual() for _ in range(16)], nn.Linear(32, 2))
    dlblocks.initialize(net, "auto", batch=inputs(), generator=torch.Generator().manual_seed(0))
    stream = net[:-1](inputs())
    assert 1.0 < stream.square().mean().item() < 3.5


def test_modes_random_state_and_seed() -> None:
    net = dlblocks.model("mlp", (32,), 5, "gelu", dropout=0.5)
    net[1].eval()
    modes = [part.training for part in net.modules()]
    state = torch.get_rng_state()
    dlblocks.initialize(net, "auto", batch=inputs(), generator=torch.Generator().manual_seed(0))
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    again = dlblocks.model("mlp", (32,), 5, "gelu", dropout=0.5)
    dlblocks.initialize(again, "auto", batch=inputs(), generator=torch.Generator().manual_seed(0))
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(module._forward_hooks for module in net.modules())


def test_what_can_not_be_set_is_told() -> None:
    net = dlblocks.model("mlp", (32,), 5)
    with pytest.raises(UserError, match="needs a batch"):
        dlblocks.initialize(net, "auto")
    with pytest.raises(UserError, match="sets the biases too"):
        dlblocks.initialize(net, "auto", "zeros", batch=inputs())
    with pytest.raises(UserError, match="batch: give a tensor of inputs, not list"):
        dlblocks.initialize(net, "auto", batch=[inputs()])
    with pytest.raises(UserError, match="the model can't be run on the batch: mat1 and mat2"):
        dlblocks.initialize(net, "auto", batch=inputs(8, 3))
    with pytest.raises(UserError, match="gives the same for all inputs"):
        dlblocks.initialize(net, "auto", batch=torch.zeros(8, 32))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_lit_module_meets_its_data(name: str) -> None:
    module = dlblocks.LitModule(
        task="multiclass",
        input_shape=(32,),
        outputs=5,
        activation=name,
        init="auto",
        model={"name": "mlp", "depth": 4},
    )
    before = module.net(5 * inputs())
    module.meet(5 * inputs())
    after = module.net(5 * inputs())
    assert after.std().item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(before, after)
