"""init=auto of recurrent layers and attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dlblocks

ROWS, STEPS = 64, 16


def inputs(scale: float = 1.0, steps: int = STEPS) -> Tensor:
    return scale * torch.randn(ROWS, steps, 8, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    """Reads a sequence and gives three numbers by its last state."""

    def __init__(self, layer: nn.RNNBase, packed: bool = False) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed
        self.last = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = torch.tensor([x.shape[1] // 2, *[x.shape[1]] * (len(x) - 1)])
            given = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            states, _ = nn.utils.rnn.pad_packed_sequence(self.layer(given)[0], batch_first=True)
        else:
            states, _ = self.layer(x)
        out: Tensor = self.last(states[:, -1])
        return out


class Stepwise(nn.Module):
    """The same by a cell."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        out: Tensor = self.last(state[0] if isinstance(state, tuple) else state)
        return out


def initialized(net: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        net(x)
    return dlblocks.initialize(net, "auto", generator=torch.Generator().manual_seed(0), batch=x)


def mean_square(x: Tensor) -> float:
    return x.detach().square().mean().item()


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
@pytest.mark.parametrize("scale", [0.01, 100.0])
@pytest.mark.parametrize("packed", [False, True])
def test_gates_get_inputs_of_variance_one(kind: Any, gates: int, scale: float, packed: bool) -> None:
    net = Reader(kind(8, 16, num_layers=2, bidirectional=True, batch_first=True), packed)
    x = inputs(scale)
    initialized(net, x)
    for weight in (net.layer.weight_ih_l0, net.layer.weight_ih_l0_reverse):
        for gate in weight.chunk(gates):
            assert mean_square(x @ gate.T) == pytest.approx(1.0, rel=0.05)
    one = kind(8, 16, bidirectional=True, batch_first=True)
    one.load_state_dict({name: value for name, value in net.layer.state_dict().items() if "l0" in name})
    for gate in net.layer.weight_ih_l1.chunk(gates):
        assert mean_square(one(x)[0] @ gate.T) == pytest.approx(1.0, rel=0.3)
    for name in ("weight_hh_l0", "weight_hh_l1_reverse"):
        for gate in getattr(net.layer, name).chunk(gates):
            assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)
    assert net(x).std().item() == pytest.approx(0.1, rel=0.3)


def test_an_lstm_does_not_forget() -> None:
    net = Reader(nn.LSTM(8, 16, num_layers=2, batch_first=True))
    initialized(net, inputs())
    for level in range(2):
        given, forget, cell, out = getattr(net.layer, f"bias_ih_l{level}").chunk(4)
        assert (forget == 1).all()
        assert not torch.cat([given, cell, out]).any()
        assert not getattr(net.layer, f"bias_hh_l{level}").any()


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_an_lstm_with_projections_and_no_bias() -> None:
    net = Reader(nn.LSTM(8, 16, batch_first=True, bias=False, proj_size=4))
    initialized(net, inputs())
    for gate in net.layer.weight_ih_l0.chunk(4):
        assert mean_square(inputs() @ gate.T) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_states_and_gradients_of_a_plain_network_last(nonlinearity: str, scale: float) -> None:
    net = Reader(nn.RNN(8, 64, batch_first=True, nonlinearity=nonlinearity))
    x = inputs(scale, 32)
    initialized(net, x)
    assert mean_square(x @ net.layer.weight_ih_l0.T) == pytest.approx(1 / 32, rel=0.05)
    state = net.layer.weight_hh_l0
    assert torch.allclose(state @ state.T, torch.eye(64), atol=1e-5)
    x.requires_grad_()
    assert 0.1 < mean_square(net.layer(x)[0][:, -1]) < 1.5
    net(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].norm() > 0.01 * x.grad[:, -1].norm()


def test_relu_moves_the_state_on() -> None:
    net = Reader(nn.RNN(8, 16, batch_first=True, nonlinearity="relu"))
    initialized(net, inputs())
    state = torch.rand(4, 16)
    assert torch.equal(state @ net.layer.weight_hh_l0.T, state.roll(1, 1))


@pytest.mark.parametrize(
    ("cell", "size"),
    [
        (nn.RNNCell(8, 16), 1 / STEPS),
        (nn.RNNCell(8, 16, nonlinearity="relu"), 1 / STEPS),
        (nn.LSTMCell(8, 16), 1.0),
        (nn.GRUCell(8, 16), 1.0),
        (nn.LSTMCell(8, 16, bias=False), 1.0),
    ],
)
def test_cells_are_set_as_layers(cell: nn.RNNCellBase, size: float) -> None:
    x = inputs(10.0)
    initialized(Stepwise(cell), x)
    for gate in cell.weight_ih.chunk(cell.weight_ih.shape[0] // 16):
        assert mean_square(x[:, 0] @ gate.T) == pytest.approx(size, rel=0.05)
    if isinstance(cell, nn.LSTMCell) and cell.bias:
        assert cell.bias_ih[16:32].eq(1).all()


def test_inputs_of_zeros_leave_the_weights() -> None:
    class Echo(nn.Module):
        """Reads nothing but its first state."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 16)
            self.cell = nn.GRUCell(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.cell(torch.zeros_like(x), self.first(x))
            return out

    net = Echo()
    initialized(net, inputs()[:, 0])
    for gate in net.cell.weight_ih.chunk(3):
        assert torch.allclose(gate.T @ gate, torch.eye(8), atol=1e-5)


class Blocks(nn.Module):
    """Attention with a skip around it, and no norm."""

    def __init__(self, depth: int, **sizes: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.layers = nn.ModuleList(
            [nn.MultiheadAttention(32, 4, batch_first=True, **sizes) for _ in range(depth)]
        )
        self.last = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            other = x if layer.kdim == 8 else h
            h = h + layer(h, key=other, value=other)[0]
        out: Tensor = self.last(h.mean(1))
        return out


@pytest.mark.parametrize("sizes", [{}, {"kdim": 8, "vdim": 8}])
def test_queries_keys_and_values_have_variance_one(sizes: dict[str, int]) -> None:
    net, x = Blocks(4, **sizes), inputs(30.0)
    initialized(net, x)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(
        _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], made: tuple[Tensor, ...]
    ) -> None:
        seen.append((args[0], kwargs["key"], made[0]))

    for layer in net.layers:
        layer.register_forward_hook(note, with_kwargs=True)
    net(x)
    for layer, (query, key, out) in zip(net.layers, seen, strict=True):
        separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        weights = separate if sizes else layer.in_proj_weight.chunk(3)
        for weight, given in zip(weights, (query, key, key), strict=True):
            assert mean_square(given @ weight.T) == pytest.approx(1.0, rel=0.05)
        assert mean_square(out) == pytest.approx(1 / 4, rel=0.05)  # the four share the sum's variance
    assert net(x).std().item() == pytest.approx(0.1, rel=0.3)


def test_a_transformer_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0, activation="gelu")
    net = nn.Sequential(
        nn.Linear(8, 32), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(32 * STEPS, 3)
    )
    initialized(net, inputs(30.0))
    assert net(inputs(30.0)).std().item() == pytest.approx(0.1, rel=0.3)


def test_layers_that_others_call_in_their_way_keep_their_weights() -> None:
    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            out: Tensor = super().forward(x, x, x)[0]
            return out

    class Last(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            out: Tensor = super().forward(x)[0][:, -1]
            return out

    net = nn.Sequential(
        SelfAttention(8, 2, batch_first=True), Last(8, 16, 2, batch_first=True), nn.Linear(16, 3)
    )
    initialized(net, inputs())
    for gate in [*net[0].in_proj_weight.chunk(3), *net[1].weight_ih_l0.chunk(4)]:
        assert torch.allclose(gate.T @ gate, torch.eye(8), atol=1e-5)
    assert net(inputs()).std().item() == pytest.approx(0.1, rel=0.3)


def test_words_are_read() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.layer, self.last = (
                nn.Embedding(20, 8),
                nn.GRU(8, 16, batch_first=True),
                nn.Linear(16, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.tanh(self.layer(input=self.words(x))[1][0]))
            return out

    net, x = Words(), torch.randint(20, (64, 12), generator=torch.Generator().manual_seed(1))
    initialized(net, x)
    for gate in net.layer.weight_ih_l0.chunk(3):
        assert mean_square(net.words(x) @ gate.T) == pytest.approx(1.0, rel=0.05)
    assert net(x).std().item() == pytest.approx(0.1, rel=0.3)
