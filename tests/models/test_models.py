"""The nets, with every activation the registry has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dlblocks
from dlblocks.activations.width import width_ratio
from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY, names

SHAPE = (1, 8, 8)
# Predefined ones are tested in tests/foreign, with the packages that have them.
OURS = [name for name in names("model") if not REGISTRY.get("model", name).tags.get("predefined")]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("activation", names("activation"))
def test_every_activation_fits_every_model(name: str, activation: str) -> None:
    net = dlblocks.model(name, SHAPE, 5, activation)
    output = net(torch.randn(3, *SHAPE))
    assert output.shape == (3, 5)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_norm_and_dropout(name: str, norm: str, dropout: float) -> None:
    net = dlblocks.model(name, SHAPE, 2, "maxout", norm=norm, dropout=dropout)
    assert net(torch.randn(4, *SHAPE)).shape == (4, 2)
    kinds = {type(module).__name__ for module in net.modules()}
    assert bool(kinds & {"Dropout", "Dropout2d"}) == (dropout > 0)
    assert bool(kinds & {"BatchNorm1d", "BatchNorm2d"}) == (norm == "batch")
    assert bool(kinds & {"LayerNorm", "GroupNorm"}) == (norm == "layer")


@pytest.mark.parametrize("name", OURS)
def test_each_layer_has_its_own_activation(name: str) -> None:
    for spec in ("prelu", nn.PReLU()):
        net = dlblocks.model(name, SHAPE, 2, spec)
        found = [module for module in net.modules() if isinstance(module, nn.PReLU)]
        assert len(found) == 2
        assert len({id(module.weight) for module in found}) == 2


def test_mlp_sizes() -> None:
    net = dlblocks.model("mlp", (4,), 3, depth=2, width=8)
    assert [m.weight.shape for m in net if isinstance(m, nn.Linear)] == [(8, 4), (8, 8), (3, 8)]
    net = dlblocks.model("mlp", (4,), 3, {"name": "maxout", "pieces": 3}, widths=[5, 6])
    assert [m.weight.shape for m in net if isinstance(m, nn.Linear)] == [(15, 4), (18, 5), (3, 6)]
    assert len(dlblocks.model("mlp", (4,), 3, depth=0)) == 1


def test_mlp_of_maxout_is_the_papers_function() -> None:
    net = dlblocks.model("mlp", (4,), 1, {"name": "maxout", "pieces": 2}, widths=[3])
    x = torch.randn(7, 4)
    first, last = net[0], net[-1]
    pieces = [x @ first.weight[i * 3 : i * 3 + 3].T + first.bias[i * 3 : i * 3 + 3] for i in range(2)]
    expected = torch.maximum(*pieces) @ last.weight.T + last.bias
    assert torch.allclose(net(x), expected, atol=1e-6)


def test_convnet_applies_softmax_over_channels() -> None:
    net = dlblocks.model("convnet", SHAPE, 2, "softmax", channels=[6], norm="none")
    hidden = net[:2](torch.randn(2, *SHAPE))
    assert hidden.shape == (2, 6, 8, 8)
    assert torch.allclose(hidden.sum(1), torch.ones(2, 8, 8), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "params", "message"),
    [
        ("convnet", (64,), {}, "needs pictures"),
        ("convnet", SHAPE, {"kernel_size": 4}, "must be odd"),
        ("mlp", SHAPE, {"dropout": 1.5}, r"model.dropout=1.5: must be a number in \[0, 1\)"),
        ("mlp", SHAPE, {"widht": 3}, "Did you mean 'width'"),
        ("mlp", SHAPE, {"widths": [4], "depth": 3}, "leave out"),
        ("mpl", SHAPE, {}, "Did you mean 'mlp'"),
    ],
)
def test_refusals(name: str, shape: tuple[int, ...], params: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dlblocks.model(name, shape, 2, **params)


def test_declared_defaults_are_the_signatures() -> None:
    import inspect

    for name in names("model"):
        block = REGISTRY.get("model", name)
        signature = inspect.signature(block.load()).parameters
        assert {p.name: p.default for p in block.params} == {
            key: p.default for key, p in signature.items() if p.kind is p.KEYWORD_ONLY
        }


def test_width_ratio_of_modules_and_names() -> None:
    assert width_ratio("relu") == 1
    assert width_ratio("glu") == width_ratio(nn.GLU()) == 2
    assert width_ratio(dlblocks.activation("maxout", pieces=5)) == 5
