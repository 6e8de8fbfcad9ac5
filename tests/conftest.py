"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

# Each worker of the tests has one core; threads of several for nets this small wait for each other.
torch.set_num_threads(1)

FOREIGN = Path(__file__).parent / "foreign"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tests with torchvision, timm and transformers run where they are named: `pytest tests/foreign`."""
    named = any("foreign" in argument for argument in config.args)
    return True if collection_path == FOREIGN and not named else None


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """A test that draws without a seed of its own draws the same in every run and in any order."""
    torch.manual_seed(0)
