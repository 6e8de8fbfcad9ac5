"""Seeds are fixed for ever: a change of these numbers changes every run."""

from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from dlblocks import seeds


def test_golden() -> None:
    # From `printf 0:split | b2sum -l 64`, halved.
    assert seeds.derive(0, "split") == 0xD8BDCD6ECAE386A5 >> 1


@given(st.integers(), st.text())
def test_63_bits(seed: int, purpose: str) -> None:
    assert 0 <= seeds.derive(seed, purpose) < 2**63


def test_purposes_and_seeds_differ() -> None:
    purposes = ("split", "weights", "order", "dropout", "data")
    assert len({seeds.derive(seed, purpose) for seed in range(20) for purpose in purposes}) == 100


def test_same_in_another_process_without_torch() -> None:
    code = "import sys; from dlblocks import seeds; print(seeds.derive(7, 'order'), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(seeds.derive(7, "order")), "False"]


def test_generator_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first = torch.randperm(50, generator=seeds.generator(3, "order"))
    torch.manual_seed(1)
    again = torch.randperm(50, generator=seeds.generator(3, "order"))
    assert first.equal(again)
    torch.set_rng_state(before)
    torch.rand(3, generator=seeds.generator(3, "data"))
    assert torch.get_rng_state().equal(before)
