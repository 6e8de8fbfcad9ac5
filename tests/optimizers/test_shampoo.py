"""Our Shampoo: by the paper's formula, as pytorch-optimizer's where that is finite, and finite where that is not."""

from __future__ import annotations

import pytest
import pytorch_optimizer
import torch
from torch import Tensor

import dlblocks
from dlblocks.optimizers.shampoo import Shampoo


def gradients(shape: tuple[int, ...], count: int = 4) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def moved(kind: type, steps: Tensor, **options: float) -> Tensor:
    theta = torch.zeros(steps.shape[1:], dtype=steps.dtype, requires_grad=True)
    optimizer = kind([theta], lr=0.1, **options)
    for g in steps:
        theta.grad = g.clone()
        optimizer.step()
    return theta.detach()


@pytest.mark.parametrize("shape", [(5, 7), (6,), (3, 4, 2, 2), ()])
def test_as_pytorch_optimizers(shape: tuple[int, ...]) -> None:
    steps = gradients(shape)
    torch.testing.assert_close(
        moved(Shampoo, steps), moved(pytorch_optimizer.Shampoo, steps), atol=1e-9, rtol=1e-9
    )


def test_a_matrix_by_the_papers_formula() -> None:
    (g,) = gradients((4, 3), 1)

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix + 1e-6 * torch.eye(len(matrix)))
        return vectors @ torch.diag(values**-0.25) @ vectors.T

    torch.testing.assert_close(moved(Shampoo, g[None]), -0.1 * root(g @ g.T) @ g @ root(g.T @ g))


def test_units_without_a_gradient_stay_finite_and_nearly_still() -> None:
    steps = 1e6 * gradients((4, 3)).float()
    steps[:, 1] = 0
    ours = moved(Shampoo, steps)
    assert ours.isfinite().all()
    assert ours[1].abs().max() < 0.01 * ours[0].abs().max()
    assert ours[0].all()


def test_roots_are_kept_between_the_steps_that_compute_them() -> None:
    steps = gradients((4, 3), 3)
    theta = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = dlblocks.optimizer("shampoo", [theta], preconditioning_compute_steps=2)
    kept = []
    for g in steps:
        theta.grad = g.clone()
        optimizer.step()
        kept.append(optimizer.state[theta]["inverse_root_0"].clone())
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_momentum_and_decay() -> None:
    first, second = gradients((4, 3), 2)
    averaged = torch.stack([0.5 * first, 0.25 * first + 0.5 * second])
    torch.testing.assert_close(
        moved(Shampoo, torch.stack([first, second]), momentum=0.5), moved(Shampoo, averaged)
    )
    theta = torch.ones(4, 3, requires_grad=True)
    theta.grad = torch.zeros(4, 3)
    Shampoo([theta], lr=0.1, weight_decay=0.5, weight_decouple=True).step()
    torch.testing.assert_close(theta.detach(), torch.full((4, 3), 0.95))
