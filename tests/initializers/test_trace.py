"""What a run shows of a net: activations however they are called, and nothing else in their place."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.initializers.chains import Activation, Chain
from dlblocks.initializers.trace import Trace, trace
from dlblocks.theory.operating_point import operating_point

Function = Callable[[Tensor], Tensor]
NUMBERS = torch.linspace(-3, 3, 25, dtype=torch.float64)[None]


class Between(nn.Module):
    """Two layers of 16 units with something between them, and what it needs."""

    def __init__(self, function: Function, convolution: bool = False, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.first: nn.Module = nn.Conv2d(3, 16, 3, padding=1) if convolution else nn.Linear(8, 16)
        self.last: nn.Module = nn.LazyConv2d(4, 3) if convolution else nn.LazyLinear(4)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(x)))
        return out


@torch.no_grad()
def traced(net: nn.Module) -> Trace:
    shape = (8, 3, 8, 8) if isinstance(getattr(net, "first", None), nn.Conv2d) else (8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    net(x)
    return trace(net, x)


class MySigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))


class PerChannel(nn.Module):
    """Swish with a slope of its own for each of 16 units."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((16,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta[None, :] * x)


def _smooth(x: Tensor) -> Tensor:
    return x * torch.tanh(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    scripted: Function = torch.jit.script(_smooth)  # what it calls can't be seen


class Scripted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scripted(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return 2 * torch.tanh(x)


CALLED: dict[str, tuple[Function, Function]] = {
    "of torch": (torch.sigmoid, torch.sigmoid),
    "of functional": (F.softplus, F.softplus),
    "a method": (lambda x: x.tanh(), torch.tanh),
    "with an argument": (lambda x: F.elu(x, alpha=2.0), lambda x: F.elu(x, alpha=2.0)),
    "a position": (lambda x: F.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "in place": (torch.relu_, torch.relu),
    "in place by an argument": (lambda x: F.relu(x, inplace=True), torch.relu),
    "in place on itself": (lambda x: x.mul_(torch.sigmoid(x)), F.silu),
    "several": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "by a mask": (lambda x: x * (x > 0), torch.relu),
    "by where": (lambda x: torch.where(x > 0, x, 0.2 * x), lambda x: F.leaky_relu(x, 0.2)),
    "by zeros": (lambda x: torch.maximum(x, torch.zeros_like(x)), torch.relu),
    "of a custom gradient": (Doubled.apply, lambda x: 2 * torch.tanh(x)),
    "a mean slope": (lambda x: F.rrelu(x, 0.1, 0.3, training=True), lambda x: F.leaky_relu(x, 0.2)),
    "before dropout": (lambda x: F.dropout(torch.tanh(x), 0.5), torch.tanh),
    "noise added": (lambda x: torch.tanh(x + 0 * torch.randn_like(x)), torch.tanh),
    "another shape": (lambda x: torch.tanh(x.reshape(8, 4, 4)).flatten(1), torch.tanh),
}


@pytest.mark.parametrize("how", CALLED)
def test_functions_are_seen_with_their_arguments(how: str) -> None:
    function, reference = CALLED[how]
    net = Between(function)
    seen = traced(net)
    for chain in (seen.after[net.first], seen.before[net.last]):
        assert isinstance(chain, Chain)
        torch.testing.assert_close(chain(NUMBERS), reference(NUMBERS))


@pytest.mark.parametrize(
    ("module", "reference"),
    [
        (MySigmoid(), torch.sigmoid),
        (PerChannel(), lambda x: x * torch.sigmoid(1.5 * x)),
        (Scripted(), lambda x: x * torch.tanh(x)),
        (nn.PReLU(16), lambda x: F.leaky_relu(x, 0.25)),
        (nn.ELU(2.0, inplace=True), lambda x: F.elu(x, 2.0)),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), lambda x: torch.tanh(torch.relu(x))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_are_seen_by_what_they_do(module: nn.Module, reference: Function) -> None:
    net = Between(lambda x: net.module(x), module=module)
    seen = traced(net)
    for chain in (seen.after[net.first], seen.before[net.last]):
        assert isinstance(chain, Chain)
        torch.testing.assert_close(chain(NUMBERS), reference(NUMBERS))


def test_a_function_and_a_module_have_the_same_operating_point() -> None:
    for function, name in (
        (F.gelu, "gelu"),
        (lambda x: F.glu(x, 1), "glu"),
        (lambda x: x.softmax(-1), "softmax"),
    ):
        net = Between(function)
        chain = traced(net).after[net.first]
        assert isinstance(chain, Chain)
        assert operating_point(Activation(chain)) == operating_point({"glu": nn.GLU(1)}.get(name, name))


@pytest.mark.parametrize(
    ("use", "function"),
    [
        ("layer", lambda x: x),
        ("layer", lambda x: 2 * x),
        ("layer", lambda x: F.hardtanh(x, -500, 500)),
        ("layer", lambda x: F.dropout(x, 0.1)),
        ("layer", lambda x: torch.dropout(x, 0.1, True)),
        ("layer", lambda x: x.view(4, -1).view(8, 16)),
        ("layer", lambda x: x.to(torch.bfloat16).float()),
        ("layer", lambda x: x if bool((x > 0).any()) else -x),
        ("layer", lambda x: x.cumsum(1)),
        ("layer", F.normalize),
        ("function", lambda x: x - x.abs().mean(1, keepdim=True)),
        ("function", lambda x: x / x.square().mean(1, keepdim=True).sqrt()),
        ("function", lambda x: torch.cat([x, x], 1)),
        ("function", lambda x: x @ x.T),
        ("function", scripted),
    ],
)
def test_what_is_no_activation(use: str, function: Function) -> None:
    net = Between(function)
    seen = traced(net)
    assert seen.after[net.first] == use
    assert seen.before[net.last] is None


def test_functional_layers_and_norms_end_a_chain() -> None:
    weight = nn.Linear(16, 16)
    net = Between(lambda x: torch.tanh(F.linear(F.relu(x), weight.weight)), weight=weight)
    seen = traced(net)
    after, before = seen.after[net.first], seen.before[net.last]
    assert isinstance(after, Chain)
    assert isinstance(before, Chain)
    torch.testing.assert_close(after(NUMBERS), NUMBERS.relu())
    torch.testing.assert_close(before(NUMBERS), NUMBERS.tanh())
    net = Between(lambda x: torch.tanh(F.layer_norm(x, (16,), weight.bias, weight.bias)), weight=weight)
    assert traced(net).after[net.first] == "function"


@pytest.mark.parametrize(
    "function", [lambda x: F.relu(F.max_pool2d(x, 2)), lambda x: F.avg_pool2d(F.relu(x), 2)]
)
def test_activations_are_seen_through_pooling(function: Function) -> None:
    net = Between(function, convolution=True)
    seen = traced(net)
    for chain in (seen.after[net.first], seen.before[net.last]):
        assert isinstance(chain, Chain)
        torch.testing.assert_close(chain(NUMBERS), NUMBERS.relu())


def test_sums_and_what_is_given_out() -> None:
    class Block(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.first, self.branch, self.gate, self.last = (nn.Linear(8, 8) for _ in range(4))
            self.in_place = in_place

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            branch = self.branch(F.relu(x))
            branch = branch.add_(x) if self.in_place else x + branch
            out: Tensor = self.last(branch * torch.sigmoid(self.gate(F.relu(branch))))
            return out

    for in_place in (False, True):
        net = Block(in_place)
        seen = traced(net)
        after = [seen.after[layer] for layer in (net.first, net.branch, net.gate, net.last)]
        assert isinstance(after[0], Chain)
        assert after[1] == "sum"
        assert isinstance(after[2], Chain)
        torch.testing.assert_close(after[2](NUMBERS), NUMBERS.sigmoid())
        assert after[3] == "sum"
        assert isinstance(seen.before[net.branch], Chain)
        assert isinstance(seen.before[net.gate], Chain)
        assert seen.before[net.last] is None


def test_masks_are_no_activations_of_what_they_cover() -> None:
    net = Between(lambda x: net.other(x) * (x > 0), other=nn.Linear(16, 16))
    assert traced(net).after[net.first] == "layer"


def test_the_run_leaves_the_net_as_it_was() -> None:
    net = Between(lambda x: torch.relu_(net.own(x)), own=MySigmoid())
    traced(net)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(UserError, match=r"init=auto: the model can.t be run on the batch: mat1 and mat2"):
        trace(net, torch.zeros(2, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
