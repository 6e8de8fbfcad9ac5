"""compile=true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dlblocks

QUIET = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "logger=none")
SHORT = (
    "data=wine",
    "trainer.max_epochs=2",
    "data.batch_size=50",
    "data.drop_last=true",
    "optimizer=sgd",
    "optimizer.lr=0.05",
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)[
        "state_dict"
    ]
    return state


# torch's own, of names that it is about to remove.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_net_ends_where_it_would(tmp_path: Path) -> None:
    try:
        for compiled in ("false", "true"):
            recipe = dlblocks.compose(*QUIET, *SHORT, f"compile={compiled}")
            dlblocks.train(recipe, tmp_path / compiled)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    finally:
        torch._dynamo.reset()
    plain, compiled_weights = weights(tmp_path / "false"), weights(tmp_path / "true")
    assert list(plain) == list(compiled_weights)
    for name, value in plain.items():
        torch.testing.assert_close(compiled_weights[name], value, rtol=1e-3, atol=1e-4)
    dlblocks.LitModule.load_from_checkpoint(tmp_path / "true" / "checkpoints" / "best.ckpt")


PROGRAM = f"""
import dlblocks

result = dlblocks.train(dlblocks.compose(*{QUIET + SHORT}, "compile=true"), "run")
print("status", result.status)
"""


def test_without_a_compiler_it_trains_as_it_is(script: Callable[..., str], tmp_path: Path) -> None:
    said = script(PROGRAM, CXX="/no/compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert said.count("compile=true: the net can't be compiled here (") == 1
    assert "it trains as it is" in said
    assert "status completed" in said
