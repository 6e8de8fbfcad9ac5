"""Recurrent layers and attention, in which one call goes through several matrices: set on what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def set_recurrent(layer: nn.Module, given: Tensor | PackedSequence, calls: int = 1) -> None:
    """Scale what the gates of an RNN, LSTM or GRU, or of a cell of them, take from the inputs. The weights of the
    state stay orthogonal (Saxe et al. 2013, arXiv:1312.6120).

    A gate of LSTM or GRU gets `Var[W_ih x] = 1` on the inputs given, and the forget gate of an LSTM a bias of 1
    (Jozefowicz et al. 2015, PMLR 37).

    The state of a plain RNN is a sum over all T steps, which `Var[W_ih x] = 1 / T` would give variance 1 were it not
    for the activation: larger inputs would saturate tanh, and orthogonal weights pass a signal or gradient on only
    where it is straight. A ReLU halves the square of a turned state at every step, but leaves one alone that is not
    negative. So there, in place of the identity (Le et al. 2015, arXiv:1504.00941), `W_hh` moves the state one unit
    on (Rodan & Tino 2011, IEEE TNN 22): it loses as little, and keeps apart what came in at different steps.

    Args:
        layer: RNN, LSTM, GRU, RNNCell, LSTMCell or GRUCell; its weights random of any scale, its biases 0.
        given: its inputs; all zero, they leave the weights as they are.
        calls: T of a cell.
    """
    if isinstance(layer, nn.RNNCellBase):
        assert isinstance(given, Tensor)
        _set_gates(layer, [layer.weight_ih, layer.weight_hh, layer.bias_ih], given, calls)
        return
    assert isinstance(layer, nn.RNNBase)
    if isinstance(given, PackedSequence):
        values, steps = given.data, len(given.batch_sizes)
    else:
        values, steps = given, given.shape[1 if layer.batch_first and given.ndim == 3 else 0]
    directions = 2 if layer.bidirectional else 1
    for level in range(layer.num_layers):
        own = slice(level * directions, (level + 1) * directions)
        for weights in layer.all_weights[own]:
            _set_gates(layer, weights, values, steps)
        if level + 1 < layer.num_layers:  # the last states stand for all that the next level is given
            _, state = layer.forward(given)
            values = torch.cat(list((state[0] if isinstance(state, tuple) else state)[own]), -1)


def _set_gates(layer: nn.Module, weights: Sequence[Tensor | None], values: Tensor, steps: int) -> None:
    """Set a level in one direction: weights of inputs and state, and a bias if there is one."""
    of_inputs, of_state, *biases = weights
    assert of_inputs is not None
    assert of_state is not None
    assert isinstance(layer.hidden_size, int)
    plain = isinstance(layer, (nn.RNN, nn.RNNCell))
    for gate in of_inputs.chunk(of_inputs.shape[0] // layer.hidden_size):
        _scale(gate, values, 1 / steps if plain else 1.0)
    if plain and layer.nonlinearity == "relu":
        of_state.copy_(torch.eye(layer.hidden_size).roll(1, 0))
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)) and layer.bias and biases[0] is not None:
        biases[0].chunk(4)[1].fill_(1.0)


def set_attention(layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Scale the projections of an attention so that queries, keys and values have variance 1 on what is given,
    and with them the logits `q k / sqrt(d)`; what is all zero leaves its projection as it is."""
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.chunk(3)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    for weight, given in zip(weights, (query, key, value), strict=True):
        _scale(weight, given, 1.0)


def _scale(weight: Tensor, given: Tensor, variance: float) -> None:
    """Give `W x` this mean square."""
    size = float((given @ weight.T).double().square().mean())
    if 1e-30 < size < inf:
        weight.mul_(sqrt(variance / size))
