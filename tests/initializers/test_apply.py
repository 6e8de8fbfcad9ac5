"""Initialising whole modules."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import dlblocks
from dlblocks.errors import UserError


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_weights_and_biases_each_get_theirs_and_the_rest_stays() -> None:
    model = nn.Sequential(
        nn.Embedding(5, 4),
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.PReLU(),
        nn.Conv1d(1, 2, 3),
        nn.BatchNorm1d(2),
    )
    nn.init.constant_(model[2].bias, 0.7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert dlblocks.initialize(model, "ones", {"name": "constant", "value": 0.5}) is model
    for key, value in model.state_dict().items():
        if key in ("1.weight", "4.weight"):
            assert (value == 1).all()
        elif key in ("1.bias", "4.bias"):
            assert (value == 0.5).all()
        else:
            assert torch.equal(value, before[key]), key


def test_biases_are_zero_unless_asked() -> None:
    assert not dlblocks.initialize(nn.Linear(3, 4), "he_normal").bias.any()


def test_default_leaves_everything() -> None:
    model = nn.Linear(3, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dlblocks.initialize(model, "default")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    dlblocks.initialize(model, "default", "zeros")
    assert torch.equal(before["weight"], model.weight)
    assert not model.bias.any()
    assert dlblocks.initialize(nn.ReLU(), "default")


def test_default_as_a_ready_object_leaves_everything_too() -> None:
    model = nn.Linear(3, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dlblocks.initialize(model, dlblocks.initializer("default"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert dlblocks.initialize(nn.ReLU(), dlblocks.initializer("default"))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_default_leaves_layers_that_cannot_be_filled() -> None:
    dlblocks.initialize(nn.LazyLinear(3), "default")
    normed = weight_norm(nn.Linear(3, 4))
    before = normed.weight.detach().clone()
    dlblocks.initialize(normed, "default", "ones")
    assert torch.equal(normed.weight, before)
    assert (normed.bias == 1).all()


def pruned(layer: nn.Module) -> nn.Module:
    prune.identity(layer, "weight")
    return layer


@pytest.mark.parametrize(
    "computed",
    [
        lambda: weight_norm(nn.Linear(3, 4)),
        lambda: spectral_norm(nn.Conv2d(3, 4, 3)),
        lambda: pruned(nn.Linear(3, 4)),
        lambda: weight_norm(nn.LSTM(4, 4), "weight_hh_l0"),
    ],
)
def test_values_that_are_computed_from_others_are_refused(computed: Callable[[], nn.Module]) -> None:
    with pytest.raises(UserError, match=r"init: layer 0 \(.*\) computes its values from other parameters"):
        dlblocks.initialize(nn.Sequential(computed()), "he_normal")


@pytest.mark.parametrize("size", [{}, {"kdim": 48, "vdim": 40}])
def test_attention_is_initialised_matrix_by_matrix(size: dict[str, int]) -> None:
    attention = nn.MultiheadAttention(64, 4, **size, add_bias_kv=True)
    dlblocks.initialize(attention, "orthogonal", generator=seeded())
    if size:
        matrices = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        matrices = list(attention.in_proj_weight.chunk(3))
    for matrix in [*matrices, attention.out_proj.weight]:
        product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        assert torch.allclose(product, torch.eye(len(product)), atol=1e-5)
    dlblocks.initialize(attention, "he_uniform", generator=seeded())
    for matrix in matrices:
        assert matrix.detach().abs().max() == pytest.approx(sqrt(6 / matrix.shape[1]), rel=0.01)
    assert not attention.in_proj_bias.any()
    assert not attention.bias_k.any()
    assert not attention.out_proj.bias.any()


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_are_initialised_gate_by_gate(kind: type[nn.RNNBase], gates: int) -> None:
    layer = dlblocks.initialize(
        kind(8, 8, num_layers=2, bidirectional=True), "orthogonal", generator=seeded()
    )
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            assert not parameter.any()
            continue
        for matrix in parameter.chunk(gates):
            small = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
            assert torch.allclose(small, torch.eye(len(small)), atol=1e-5)


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNNCell, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_cells_are_initialised_gate_by_gate(
    kind: type[nn.RNNCellBase], gates: int, bias: bool
) -> None:
    cell = dlblocks.initialize(kind(8, 8, bias=bias), "orthogonal", generator=seeded())
    for matrix in [*cell.weight_ih.chunk(gates), *cell.weight_hh.chunk(gates)]:
        assert torch.allclose(matrix.T @ matrix, torch.eye(8), atol=1e-5)
    assert not bias or not (cell.bias_ih.any() or cell.bias_hh.any())


def test_projections_of_an_lstm_are_one_matrix() -> None:
    layer = dlblocks.initialize(nn.LSTM(8, 16, proj_size=4), "orthogonal", generator=seeded())
    assert torch.allclose(layer.weight_hr_l0 @ layer.weight_hr_l0.T, torch.eye(4), atol=1e-5)


def test_shared_parameters_are_filled_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    calls = []

    def count(tensor: torch.Tensor, **_: object) -> torch.Tensor:
        calls.append(tensor.shape)
        return tensor

    dlblocks.initialize(nn.Sequential(first, second), count, count)
    assert calls == [(4, 4), (4,), (4,)]


def test_the_order_of_draws_is_that_of_the_modules() -> None:
    first = dlblocks.initialize(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "he_normal", generator=seeded()
    )
    alone = dlblocks.initialize(nn.Linear(3, 3), "he_normal", generator=seeded())
    assert torch.equal(first[0].weight, alone.weight)
    assert not torch.equal(first[1].weight, alone.weight)


def test_frozen_and_half_precision_parameters_are_filled_too() -> None:
    layer = nn.Linear(3, 3).to(torch.bfloat16).requires_grad_(False)
    dlblocks.initialize(layer, "ones")
    assert (layer.weight == 1).all()
    assert not layer.weight.requires_grad


@pytest.mark.parametrize(
    ("model", "init", "bias", "message"),
    [
        (nn.Linear(2, 2), "he_normal", "he_normal", "bias_init=he_normal: needs fan_in and fan_out"),
        (nn.Linear(2, 2), "he_normall", "zeros", "Did you mean 'he_normal'"),
        (nn.Linear(2, 2), "he_normal", "zeross", "Did you mean 'zeros'"),
        (nn.Linear(2, 2), {"name": "normal", "std": -1}, "zeros", "init.std=-1"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), "he_normal", "zeros", "matched no parameters"),
        (nn.LazyLinear(3), "he_normal", "zeros", "lazy"),
        (nn.Linear(2, 2, bias=False), "he_normal", "zeros", "^bias_init=zeros: the model has no biases"),
        (nn.Linear(2, 2, bias=False), "default", {"name": "constant", "value": 1.0}, "^bias_init=constant: "),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_refusals(model: nn.Module, init: object, bias: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dlblocks.initialize(model, init, bias)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^init: give a model, not Tensor; of one tensor, dlblocks\.initializer"
    ):
        dlblocks.initialize(torch.zeros(2, 2), "he_normal")  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", ["auto", "default"])
def test_without_biases_what_leaves_them_is_no_error(bias: str) -> None:
    assert (dlblocks.initialize(nn.Linear(2, 2, bias=False), "ones", bias).weight == 1).all()
