"""Whether the weights of a layer look like independent draws around 0, of which alone the theory speaks; and in how many
directions instances differ."""

from __future__ import annotations

from math import isfinite, sqrt

from torch import Tensor

# Rows and columns that are compared with one another.
_ROWS, _COLUMNS = 128, 512
# Mean squares may be off by so many standard deviations of what independent draws give; below, they hardly vary so far.
_ABOVE, _BELOW = 8.0, 4.0
# Fewer rows or columns than these say little of each other.
_FEW, _MANY = 8, 32


def structure_of(weight: Tensor) -> str | None:
    """What is not as in independent draws of mean 0 and one variance, in words; None if nothing is seen.

    Each place of a convolution's kernel may have a variance of its own.

    Args:
        weight: `(outputs, inputs, *kernel)`.
    """
    if not weight.is_floating_point():
        return "its weights are no real numbers"
    values = weight.detach().cpu().float()
    largest = float(values.abs().amax())
    if not isfinite(largest):
        return "its weights are not finite"
    if largest == 0:
        return "all its weights are 0"
    kernels = (values / largest).reshape(*weight.shape[:2], -1)
    matrix = kernels.flatten(1)
    squares = matrix.square()
    outputs, inputs = matrix.shape
    square = float(squares.mean())
    if matrix.numel() > 1 and bool((matrix == matrix[0, 0]).all()):
        return "all its weights are the same"
    fourth = float(squares.square().mean()) / square**2
    if inputs >= _FEW and matrix.numel() >= _FEW**2 and fourth > inputs / 2:
        return "each of its outputs takes from only one or two of its inputs"
    # Sums over the rows are as large as those of one row: times the root of their number, if independent.
    of_rows = outputs * float(matrix.mean(0).square().mean()) / square
    of_columns = inputs * float(matrix.mean(1).square().mean()) / square
    if _unlike_one(of_rows, inputs) and outputs > 1:
        return "its outputs' weights are alike, or cancel"
    if _unlike_one(of_columns, outputs) and inputs > 1:
        return "the weights of its outputs don't have mean 0 in the way of independent draws"
    energies = squares.view_as(kernels).sum(2)
    if outputs >= _FEW and _even(energies.sum(1)) < 0.5 * inputs / (inputs + 2):
        return "some of its outputs have much larger weights than others"
    if energies.shape[1] >= _FEW and _even(energies.sum(0)) < 0.5 * outputs / (outputs + 2):
        return "some of its inputs have much larger weights than others"
    if _directions(matrix) < (0.8 if min(outputs, inputs) >= _MANY else 0.5):
        return "its weights depend on one another: they have fewer directions than independent draws"
    return None


def directions(values: Tensor) -> float:
    """In how many directions rows differ: the participation ratio of their covariance C, `(tr C)^2 / tr C^2`; 0 if
    they are all the same."""
    apart = values - values.mean(0)
    products = apart @ apart.T
    squares = float(products.square().sum())
    return float(products.trace()) ** 2 / squares if squares > 0 else 0.0


def _unlike_one(value: float, count: int) -> bool:
    """Whether a mean of so many squares of standard normals would hardly be this."""
    deviation = sqrt(2 / count)
    return value > 1 + _ABOVE * deviation or value < 1 - _BELOW * deviation


def _even(energies: Tensor) -> float:
    """1 if all are the same, near 0 if few have all."""
    return float(energies.sum().square() / energies.square().sum()) / len(energies)


def _directions(matrix: Tensor) -> float:
    """The participation ratio of the singular values' squares, over that of independent draws, `n m / (n + m)`."""
    rows = matrix[:_ROWS, :_COLUMNS]
    if min(rows.shape) < _FEW:
        return 1.0
    products = rows @ rows.T
    expected = 1 / _number(rows.square().sum(1)) + 1 / _number(rows.square().sum(0))
    found = float(products.trace().square() / products.square().sum())
    return found * expected


def _number(energies: Tensor) -> float:
    return _even(energies) * len(energies)
