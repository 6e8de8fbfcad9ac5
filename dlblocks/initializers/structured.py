"""Initialisers with a structure: identities and sparse matrices. All fill `tensor` in place and return it.

All raise `UserError` for a tensor of fewer than two dimensions. A tensor is `(outputs, inputs, *kernel)`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dlblocks.errors import UserError
from dlblocks.initializers.fans import Fans, fans_of
from dlblocks.initializers.scaling import orthogonal


def identity(
    tensor: Tensor,
    *,
    gain: float = 1.0,
    groups: int = 1,
    fans: Fans | None = None,  # noqa: ARG001
    generator: Generator | None = None,  # noqa: ARG001
) -> Tensor:
    """Each output copies one input: `gain` where both have the same number within their group and the
    kernel is at its middle, 0 elsewhere. Outputs without an input of their number are 0.

    Raises:
        UserError: the outputs are not a multiple of `groups`.
    """
    fans_of(tensor)
    if tensor.shape[0] % groups:
        raise UserError(f"identity: groups={groups} does not divide the {tensor.shape[0]} outputs.")
    per_group = tensor.shape[0] // groups
    with torch.no_grad():
        tensor.zero_()
        for group in range(groups):
            block = _middle(tensor)[group * per_group : (group + 1) * per_group]
            block.diagonal().fill_(gain)
    return tensor


def delta_orthogonal(
    tensor: Tensor, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    """`gain` times an orthogonal matrix at the middle of the kernel, 0 elsewhere: a convolution that keeps
    lengths (Xiao et al. 2018, arXiv:1806.05393).

    Raises:
        UserError: a convolution with more inputs than outputs, which can't keep lengths.
    """
    fans_of(tensor)
    if tensor.ndim > 2 and tensor.shape[1] > tensor.shape[0]:
        raise UserError(
            f"delta_orthogonal: a convolution of {tensor.shape[1]} inputs and {tensor.shape[0]} outputs can't"
            " keep lengths; it needs at least as many outputs. Use orthogonal."
        )
    with torch.no_grad():
        tensor.zero_()
        orthogonal(_middle(tensor), gain=gain, fans=fans, generator=generator)
    return tensor


def sparse(
    tensor: Tensor,
    *,
    sparsity: float = 0.9,
    std: float = 0.01,
    fans: Fans | None = None,  # noqa: ARG001
    generator: Generator | None = None,
) -> Tensor:
    """`N(0, std^2)`, with the share `sparsity` of each output's weights set to 0 (Martens 2010), rounded
    down so that a small layer keeps some.

    Note the direction: zeros are counted for each output; torch's `sparse_` counts them for each input.
    """
    fans_of(tensor)
    outputs, inputs = tensor.shape[0], tensor[0].numel() if tensor.shape[0] else 0
    with torch.no_grad():
        # Rounded down against floats such as 0.29 * 100 = 28.999...
        kept = inputs - int(sparsity * inputs + 1e-9)
        draws = torch.rand(outputs, inputs, generator=generator, device=tensor.device)
        values = tensor.new_empty(outputs, kept).normal_(0, std, generator=generator)
        filled = tensor.new_zeros(outputs, inputs)
        filled.scatter_(1, draws.topk(kept, 1, sorted=False).indices, values)
        return tensor.copy_(filled.view(tensor.shape))


def _middle(tensor: Tensor) -> Tensor:
    """The matrix `(outputs, inputs)` at the middle of the kernel."""
    for _ in range(tensor.ndim - 2):
        tensor = tensor.select(-1, tensor.shape[-1] // 2)
    return tensor
