"""What the tests of declared differences share: the registry of checks, the recorded numbers, closeness."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlblocks.registry import REGISTRY

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("jax_values.json").read_text())
X = torch.tensor(RECORDED["x"], dtype=torch.float64)
START = np.array(RECORDED["start"])
GRADS = np.array(RECORDED["grads"])

# Kind, name and library -> what shows that the declared difference is there, and is just that.
CHECKS: dict[tuple[str, str, str], Callable[[], None]] = {}


def differs(kind: str, name: str, library: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(check: Callable[[], None]) -> Callable[[], None]:
        CHECKS[kind, name, library] = check
        return check

    return add


def checks_of(*kinds: str) -> list[tuple[str, str, str]]:
    return sorted(key for key in CHECKS if key[0] in kinds)


def declared_of(*kinds: str) -> list[tuple[str, str, str]]:
    """What entries declare but of timm, whose are in tests/foreign."""
    blocks = [REGISTRY.get(kind, name) for kind in kinds for name in REGISTRY.names(kind)]
    declared = [(block.kind, block.name, library) for block in blocks for library in block.differs_from]
    return sorted(key for key in declared if key[2] != "timm")


def default(function: Any, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def close(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)
