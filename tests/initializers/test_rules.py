"""Rules: patterns on parameter names, the first that matches wins, and none may be without effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.rules import spell_out_with_rules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.hidden = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)
        self.slope = nn.PReLU()


def fill(rules: dict[str, Any], init: str = "ones", net: nn.Module | None = None) -> nn.Module:
    return dlblocks.initialize(net or Net(), {"name": init, "rules": rules})


def test_first_match_wins_and_the_rest_goes_by_the_initialiser() -> None:
    net = fill({"hidden.weight": "zeros", "*.weight": {"name": "constant", "value": 3}, "out.bias": "ones"})
    assert not net.hidden.weight.any()
    assert (net.out.weight == 3).all()
    assert (net.out.bias == 1).all()
    assert not net.hidden.bias.any()
    # Also what an initialiser alone leaves as it is: embeddings, norms, slopes.
    assert (net.embed.weight == 3).all()
    assert (net.norm.weight == 3).all()
    assert (net.slope.weight == 3).all()
    assert (net.attention.in_proj_weight == 1).all()


def test_each_matrix_of_a_parameter_has_its_own_fans() -> None:
    net = fill({"attention.in_proj_weight": "orthogonal"})
    for matrix in net.attention.in_proj_weight.chunk(3):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4))


def test_fans_of_parameters_of_unknown_modules_are_those_of_their_shape() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(400, 300))

    net = fill({"table": "lecun_normal"}, net=Own())
    assert net.table.std().item() == pytest.approx(300**-0.5, rel=0.02)


def test_default_as_a_rule_leaves_the_parameter_alone() -> None:
    net = Net()
    before = net.hidden.weight.detach().clone()
    fill({"hidden.*": "default"}, net=net)
    assert torch.equal(net.hidden.weight, before)
    assert (net.out.weight == 1).all()


def test_default_with_rules_changes_only_what_they_name() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fill({"out.weight": "zeros"}, "default", net)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["out.weight"]


def test_a_shared_parameter_is_matched_by_any_of_its_names() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    fill({"2.weight": "zeros"}, net=net)
    assert not net[0].weight.any()


def test_rules_draw_what_the_initialiser_would_have_drawn() -> None:
    nets = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2)]
    for net, rules in zip(nets, ({}, {"0.weight": "he_normal"}), strict=True):
        dlblocks.initialize(
            net, {"name": "he_normal", "rules": rules}, generator=torch.Generator().manual_seed(1)
        )
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"hiden.weight": "zeros"}, r"init\.rules\.hiden\.weight: matches no parameter .* hidden\.weight"),
        (
            {"hidden.*": "zeros", "hidden.bias": "ones"},
            r"init\.rules\.hidden\.bias: has no effect.*hidden\.\*",
        ),
        (
            {"*.bias": "he_normal"},
            r"init\.rules\.\*\.bias=he_normal: needs fan_in and fan_out, which norm\.bias",
        ),
        (
            {"out.weight": "zerso"},
            r"init\.rules\.out\.weight: unknown initializer 'zerso'. Did you mean 'zeros'",
        ),
        ({"out.weight": {"name": "normal", "std": -1}}, r"init\.rules\.out\.weight\.std=-1"),
        (["out.weight"], r"init\.rules=.*must be a mapping"),
    ],
)
def test_what_is_wrong_is_told_before_anything_changes(rules: Any, message: str) -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=message):
        fill(rules, net=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_lazy_parameters_have_no_size_yet() -> None:
    with pytest.raises(UserError, match="lazy layers"):
        fill({"0.weight": "zeros"}, net=nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(UserError, match="lazy layers"):
        fill({"0.weight": "zeros"}, net=nn.Sequential(nn.LazyBatchNorm1d()))


def test_spelled_out_with_every_default() -> None:
    spelled = spell_out_with_rules({"name": "normal", "rules": {"a": "constant", "b": {"name": "zeros"}}})
    assert spelled["rules"] == {"a": {"name": "constant", "value": 0.0}, "b": {"name": "zeros"}}
    assert spell_out_with_rules("zeros") == {"name": "zeros", "rules": None}


def test_a_single_initialiser_has_no_rules() -> None:
    assert dlblocks.initializer({"name": "ones", "rules": None})(torch.zeros(2)).tolist() == [1, 1]
    with pytest.raises(UserError, match=r"rules: need the names of a model"):
        dlblocks.initializer({"name": "ones", "rules": {"a": "zeros"}})


def test_in_a_module_and_its_checkpoint() -> None:
    net = dlblocks.LitModule(
        task="multiclass",
        input_shape=(4,),
        outputs=3,
        init={"name": "he_normal", "rules": {"2.weight": "zeros"}},
        model={"name": "mlp", "depth": 1},
    )
    assert not net.net[2].weight.any()
    assert net.hparams["init"]["rules"] == {"2.weight": {"name": "zeros"}}
