"""Activations replaced in small nets of every make; torchvision, timm and transformers: see tests/foreign."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dlblocks
from dlblocks.activations.width import width_ratio
from dlblocks.errors import UserError
from dlblocks.surgery import Found, find_activations, replace_activations


class Block(nn.Module):
    """A shared module, a function in an attribute, functions in the code, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.squeeze = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)
        self.fn: Callable[[Tensor], Tensor] = F.relu
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.first(x))))
        x = x * self.gate(self.squeeze(x))
        return self.fn(x) + F.leaky_relu(x) + x.tanh() + torch.sigmoid(x)


class Plain(nn.Module):
    """The same with a function to choose, as the reference."""

    def __init__(self, block: Block, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.act = block, act

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        x = self.act(b.second(self.act(b.first(x))))
        x = x * torch.sigmoid(b.squeeze(x))
        return self.act(x) + F.leaky_relu(x) + x.tanh() + torch.sigmoid(x)


def test_what_is_found() -> None:
    assert find_activations(nn.Sequential(Block(), dlblocks.activation("geglu"))) == [
        Found("0.fn", "relu", "attribute"),
        Found("0", "leaky_relu", "call"),
        Found("0", "tanh", "call"),
        Found("0", "sigmoid", "call", spared=True),
        Found("0.act", "ReLU", "module"),
        Found("0.gate", "Sigmoid", "module", spared=True),
        Found("1", "GEGLU", "module"),
    ]


@pytest.mark.parametrize("inplace", [False, True])
def test_modules_and_attributes_are_replaced_and_calls_are_told(inplace: bool) -> None:
    block = Block()
    keys, x = list(block.state_dict()), torch.randn(3, 4)
    before, wanted = block(x), Plain(block, F.gelu)(x)
    with pytest.warns(UserWarning, match=r"activation=gelu: .* stay: leaky_relu in Block, tanh in Block\."):
        changed = replace_activations(block, "gelu", inplace=inplace)
    assert (changed is block) == inplace
    torch.testing.assert_close(changed(x), wanted)
    assert list(changed.state_dict()) == keys
    if not inplace:
        torch.testing.assert_close(block(x), before)


def test_a_shared_module_stays_shared_and_others_are_each_their_own() -> None:
    shared = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared, nn.ReLU())
    changed = replace_activations(net, "prelu")
    assert changed[1] is changed[3]
    assert changed[4] is not changed[1]


@pytest.mark.parametrize(
    ("asked", "changed"),
    [
        ({"types": "relu"}, ["0", "2.0"]),
        ({"types": nn.ReLU}, ["0", "2.0"]),
        ({"types": ["relu", nn.GELU]}, ["0", "1", "2.0"]),
        ({"types": "sigmoid"}, ["2.1"]),
        ({"pattern": "2.*"}, ["2.0"]),
        ({"pattern": "2.*", "types": ("sigmoid", "relu")}, ["2.0", "2.1"]),
        ({}, ["0", "1", "2.0"]),
    ],
)
def test_chosen_by_type_and_name(asked: dict[str, Any], changed: list[str]) -> None:
    net = nn.Sequential(nn.ReLU(), nn.GELU(), nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    after = replace_activations(net, "silu", **asked)
    assert [name for name, module in after.named_modules() if isinstance(module, nn.SiLU)] == changed


@pytest.mark.parametrize("activation", [{"name": "elu", "alpha": 0.5}, nn.ELU(0.5), "elu", nn.ELU])
def test_any_form_of_a_block(activation: Any) -> None:
    changed = replace_activations(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), activation)
    assert isinstance(changed[1], nn.ELU)
    assert changed[1] is not activation


def test_mode_device_and_type_are_the_nets() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(torch.float64).eval()
    changed = replace_activations(net, "prelu")
    assert changed[1].weight.dtype == torch.float64
    assert not changed[1].training
    assert changed(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64
    meta = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU())
    assert replace_activations(meta, "prelu")[1].weight.is_meta


def test_torchs_transformer_layer_computes_the_new_one_also_by_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=F.relu, batch_first=True).eval()
    reference = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=F.silu, batch_first=True).eval()
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(replace_activations(layer, "silu")(x), reference(x))


def test_what_others_do_with_nets_still_works() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Tanh()).eval()
    changed = replace_activations(net, "squared_relu")
    x = torch.randn(3, 4)
    wanted = changed(x)
    torch.testing.assert_close(copy.deepcopy(changed)(x), wanted)
    torch.testing.assert_close(pickle.loads(pickle.dumps(changed))(x), wanted)
    torch.testing.assert_close(torch.export.export(changed, (x,)).module()(x), wanted)
    torch.testing.assert_close(torch.compile(changed, backend="aot_eager", fullgraph=True)(x), wanted)
    net.load_state_dict(changed.state_dict())


@pytest.mark.parametrize("wide", ["geglu", "maxout", "crelu", nn.GLU()])
def test_what_changes_the_width_stays_and_is_told(wide: Any) -> None:
    act = dlblocks.activation(wide)
    inner = int(6 / width_ratio(act))
    net = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(inner, 3), nn.ReLU())
    with pytest.warns(UserWarning, match=rf"change the number of features stay: 1 \({type(act).__name__}\)"):
        changed = replace_activations(net, "silu")
    assert type(changed[1]) is type(act)
    assert isinstance(changed[3], nn.SiLU)
    assert changed(torch.zeros(2, 4)).shape == (2, 3)


def helper(x: Tensor) -> Tensor:
    return F.elu(x)


def outer(x: Tensor) -> Tensor:
    return helper(x)


class Hidden(nn.Module):
    """Activations that neither a module nor the text of `forward` shows."""

    def __init__(self) -> None:
        super().__init__()
        self.act = partial(F.gelu, approximate="tanh")
        self.last = nn.ReLU()
        self.fn = lambda x: F.softplus(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(x)) + outer(x) + self.fn(x)


def test_functions_in_partials_are_replaced_and_those_in_helpers_told() -> None:
    with pytest.warns(UserWarning, match=r"stay: softplus in Hidden, elu in Hidden\.") as told:
        changed = replace_activations(Hidden(), "tanh")
    assert len(told) == 1
    x = torch.randn(3, 4)
    torch.testing.assert_close(changed(x), torch.tanh(torch.tanh(x)) + F.elu(x) + F.softplus(x))


@pytest.mark.parametrize("types", ["relu", nn.ReLU, ["gelu", "relu"]])
def test_calls_of_a_type_that_is_asked_for_are_told(types: Any) -> None:
    net = nn.Sequential(nn.ReLU(), Called())
    with pytest.warns(UserWarning, match=r"stay: relu in Called\."):
        replace_activations(net, "silu", types=types)
    replace_activations(nn.Sequential(nn.Tanh(), Called()), "silu", types="tanh")  # no word on relu


def test_calls_of_gates_are_told_when_gates_are_asked_for() -> None:
    with pytest.warns(UserWarning, match=r"stay: sigmoid in Block\."):
        replace_activations(Block(), "hard_sigmoid", types="sigmoid")


def test_calls_within_the_pattern_are_told_and_others_not() -> None:
    net = nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), Called()), "b": nn.Sequential(nn.ReLU())})
    with pytest.warns(UserWarning, match=r"stay: relu in Called\."):
        replace_activations(net, "silu", pattern="a.*")
    with pytest.warns(UserWarning, match=r"stay: relu in Called\."):
        replace_activations(nn.ModuleDict({"a": nn.ReLU(), "ab": Called()}), "silu", pattern="a*")
    replace_activations(net, "silu", pattern="b.*")


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_that_of_the_one_replaced(training: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).train(not training)
    net[1].train(training)
    assert replace_activations(net, "rrelu")[1].training == training


def test_device_and_type_are_those_of_the_nearest_parameters() -> None:
    parts = (nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2, device="meta"))
    net = nn.Sequential(*(nn.Sequential(part, nn.Sequential(nn.ReLU())) for part in parts))
    changed = replace_activations(net, "prelu")
    for part, built in zip(parts, changed, strict=True):
        assert built[1][0].weight.dtype == part.weight.dtype
        assert built[1][0].weight.device == part.weight.device


def test_a_shared_part_of_the_net_is_changed_once() -> None:
    act = nn.ReLU()
    part = nn.Sequential(nn.Linear(2, 2), act)
    changed = replace_activations(nn.ModuleList([part, part, act]), "prelu")
    assert changed[0] is changed[1]
    assert changed[0][1] is changed[2]


def test_torchs_transformer_layer_with_a_module_as_its_activation() -> None:
    options: dict[str, Any] = {"dropout": 0.0, "batch_first": True}
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), **options).eval()
    reference = nn.TransformerEncoderLayer(8, 2, 16, activation=F.silu, **options).eval()
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(replace_activations(layer, "silu")(x), reference(x))


class StarReLU(nn.Module):
    """As timm's: an activation made of another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.relu = nn.Parameter(torch.ones(1)), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.relu(x) ** 2


def test_an_activation_of_anybodys_is_known_by_its_name() -> None:
    changed = replace_activations(nn.Sequential(nn.Linear(2, 2), StarReLU()), "silu")
    assert isinstance(changed[1], nn.SiLU)


class Called(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        (nn.Linear(2, 2), {}, r"activation: Linear has no activation that can be replaced\.$"),
        (nn.Sequential(nn.Sigmoid()), {}, r"has no activation that can be replaced\. It has 0 \(Sigmoid\)\."),
        (nn.Sequential(Called()), {}, r"Its code calls relu, which stays\."),
        (nn.Sequential(nn.ReLU()), {"pattern": "1"}, r"no activation that matches .* It has 0 \(ReLU\)\."),
        (nn.Sequential(nn.GLU()), {"types": nn.GLU}, r"GLU changes the number of features, so it stays\.$"),
        (nn.Sequential(nn.ReLU()), {"types": "gelu"}, r"no activation that matches"),
        (nn.Sequential(nn.ReLU()), {"types": "rleu"}, r"unknown activation 'rleu'. Did you mean 'relu'"),
        (nn.ReLU(), {}, r"the model is itself an activation \(ReLU\)"),
    ],
)
def test_without_effect_is_an_error(model: nn.Module, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(model, "silu", **asked)


@pytest.mark.parametrize("activation", ["maxout", "swiglu", "crelu"])
def test_a_changed_width_fits_nowhere(activation: str) -> None:
    with pytest.raises(UserError, match=rf"activation={activation}: takes .* times the features"):
        replace_activations(nn.Sequential(nn.ReLU()), activation)


def test_hooks_would_be_lost() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    handle = net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"1 \(ReLU\) has hooks"):
        replace_activations(net, "silu")
    handle.remove()
    replace_activations(net, "silu")


def test_registered_classes_of_others_are_found() -> None:
    @dlblocks.register("activation", "of_a_test", formula="x", source="", elementwise=True)
    class OfATest(nn.Module):
        """One."""

    try:
        assert find_activations(nn.Sequential(OfATest())) == [Found("0", "OfATest", "module")]
    finally:
        from dlblocks.registry import REGISTRY

        del REGISTRY._blocks["activation"]["of_a_test"]
