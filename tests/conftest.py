"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """A test that draws without a seed of its own draws the same in every run and in any order."""
    torch.manual_seed(0)
