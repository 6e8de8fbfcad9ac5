"""Blocks by name, by mapping, and ready-made."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from dlblocks import factory
from dlblocks.errors import UnknownNameError, UserError
from dlblocks.registry import names

BUILDERS = {"activation": (factory.activation, nn.ELU, "elu"), "loss": (factory.loss, nn.Module, "huber")}


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_name_and_a_mapping_build_the_same(kind: str) -> None:
    builder, type_, name = BUILDERS[kind]
    key = {"elu": "alpha", "huber": "delta"}[name]
    built = [
        builder(name, **{key: 0.5}),
        builder({"name": name, key: 0.5}),
        builder({"name": name}, **{key: 0.5}),
    ]
    assert all(isinstance(module, type_) for module in built)
    assert [getattr(module, key) for module in built] == [0.5] * 3
    assert len({repr(module) for module in built}) == 1
    assert getattr(builder({"name": name, key: 0.5}, **{key: 0.7}), key) == 0.7


@pytest.mark.parametrize("builder", [factory.activation, factory.loss])
def test_a_ready_module_is_copied_and_a_class_instantiated(builder: object) -> None:
    ready = nn.PReLU()
    copy = builder(ready)  # type: ignore[operator]
    assert isinstance(copy, nn.PReLU)
    assert copy is not ready
    assert copy.weight is not ready.weight
    made = builder(nn.ELU, alpha=0.5)  # type: ignore[operator]
    assert isinstance(made, nn.ELU)
    assert made.alpha == 0.5


@pytest.mark.parametrize("wrong", [None, 3, ["elu"]])
def test_what_is_no_block_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match=r"^activation=.*: must be a name or a mapping"):
        factory.activation(wrong)


def test_what_is_ready_takes_no_parameters() -> None:
    for build, ready in ((factory.activation, nn.ReLU()), (factory.initializer, nn.init.zeros_)):
        with pytest.raises(UserError, match="what is ready takes no parameters, got alpha"):
            build(ready, alpha=2.0)


def test_parameters_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"^net\.act: max_val"):
        factory.activation("hard_tanh", where="net.act", min_val=1.0, max_val=-1.0)
    with pytest.raises(UserError, match=r"^activation: lower=0\.5 must not be above upper=0\.333333"):
        factory.activation("rrelu", lower=0.5)
    assert factory.activation("rrelu", lower=0.5, upper=0.5).upper == 0.5
    with pytest.raises(UserError, match=r"^loss: DistributionBalanced: counts and instances belong together"):
        factory.loss("distribution_balanced", counts=[1.0, 2.0])
    with pytest.raises(UserError, match="counts up to 9 must be below instances=9"):
        factory.loss("distribution_balanced", counts=[1.0, 9.0], instances=9)


@pytest.mark.parametrize("name", [n for n in names("initializer") if n != "auto"])
def test_initializers_refuse_whole_numbers(name: str) -> None:
    """Which would round what is drawn to 0, or have no such generator."""
    fill = factory.initializer(name)
    with pytest.raises(UserError, match=r"fills tensors of floating-point numbers, not of torch\.int64"):
        fill(torch.zeros(4, 4, 3, dtype=torch.int64))
    fitting = torch.zeros(4, 4, 3) if name in ("dirac", "delta_orthogonal") else torch.zeros(4, 4)
    assert pickle.loads(pickle.dumps(fill))(fitting) is fitting


def test_every_call_builds_a_fresh_module() -> None:
    first, second = factory.activation("prelu"), factory.activation("prelu")
    assert next(first.parameters()) is not next(second.parameters())


def test_the_mapping_is_left_as_it_was() -> None:
    spec = {"name": "elu", "alpha": 0.5}
    factory.activation(spec, alpha=0.7)
    assert spec == {"name": "elu", "alpha": 0.5}


def test_the_declared_default_counts_not_the_targets() -> None:
    assert factory.activation("leaky_relu").negative_slope == 0.1
    assert factory.loss("kl_div").reduction == "batchmean"


def test_errors_name_the_place() -> None:
    with pytest.raises(UnknownNameError, match=r"^model\.activation: unknown activation 'eluu'"):
        factory.activation("eluu", where="model.activation")
    with pytest.raises(UserError, match=r"^head\.loss\.delta=-1: must be a number in \(0, inf\)"):
        factory.loss({"name": "huber", "delta": -1}, where="head.loss")
    with pytest.raises(UserError, match=r"^init\.valeu: initializer 'constant' has no parameter"):
        factory.initializer("constant", where="init", valeu=1)


def test_an_initializer_by_name_mapping_or_function() -> None:
    for built in (
        factory.initializer("constant", value=0.5),
        factory.initializer({"name": "constant", "value": 0.5}),
    ):
        assert torch.equal(built(torch.empty(3)), torch.full((3,), 0.5))
    assert factory.initializer(nn.init.ones_) is nn.init.ones_


def test_a_model_takes_any_activation() -> None:
    for activation in ("elu", {"name": "elu", "alpha": 1.0}, nn.ELU(), nn.ELU):
        net = factory.model("mlp", (4,), 3, activation, depth=2, width=5)
        assert sum(isinstance(module, nn.ELU) for module in net.modules()) == 2
        assert net(torch.randn(7, 4)).shape == (7, 3)
    ready = nn.Linear(4, 3)
    assert factory.model(ready, (4,), 3) is ready
