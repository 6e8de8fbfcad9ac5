from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dlblocks.errors import UserError
from dlblocks.optimizers.build import optimizer
from dlblocks.optimizers.groups import decay_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True), nn.LayerNorm((4, 6))]
        )
        self.act = nn.PReLU(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.position_bias = nn.Parameter(torch.zeros(1, 4, 1))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.attend = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


def names(net: nn.Module, params: list[nn.Parameter]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in net.named_parameters()}
    return [by_id[id(parameter)] for parameter in params]


def test_weights_decay_and_nothing_else() -> None:
    net = Net()
    decay, rest = decay_groups(net, 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert names(net, decay["params"]) == [
        "embed.weight",
        "conv.weight",
        "attend.in_proj_weight",
        "attend.out_proj.weight",
    ]
    trainable = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    left = names(net, rest["params"])
    assert sorted(left) == sorted(set(trainable) - set(names(net, decay["params"])))
    assert {"norms.3.weight", "act.weight", "scale", "position_bias", "attend.bias_k", "head.bias"} <= set(
        left
    )
    assert not any(name.startswith("frozen") for name in left)


def test_one_group_when_all_decays_or_none() -> None:
    net = Net()
    trainable = sum(parameter.requires_grad for parameter in net.parameters())
    (everywhere,) = decay_groups(net, 0.1, decay_norm_and_bias=True)
    (nowhere,) = decay_groups(net, 0.0)
    assert len(everywhere["params"]) == len(nowhere["params"]) == trainable
    assert everywhere["weight_decay"] == 0.1
    assert "weight_decay" not in nowhere
    (only_weights,) = decay_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert only_weights["weight_decay"] == 0.1


def test_weight_norm_directions_decay_biases_do_not() -> None:
    net = weight_norm(nn.Linear(3, 2))
    decay, rest = decay_groups(net, 0.1)
    assert names(net, rest["params"]) == ["bias"]
    assert len(decay["params"]) == 2


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match=r"Linear has nothing to train.*requires_grad=True"):
        decay_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
    with pytest.raises(UserError, match="nothing to train"):
        optimizer("sgd", nn.ReLU())


def test_lazy_layer() -> None:
    with pytest.raises(UserError, match="LazyLinear does not know its shape yet"):
        decay_groups(nn.LazyLinear(3), 0.1)


def test_decay_reaches_what_it_should() -> None:
    """With zero gradients only decay moves a weight: by lr * weight_decay of it."""
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.PReLU())
    before = [parameter.detach().clone() for parameter in net.parameters()]
    opt = optimizer("adamw", net, lr=0.1, weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    after = list(net.parameters())
    torch.testing.assert_close(after[0], before[0] * 0.95)
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
