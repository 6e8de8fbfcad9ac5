"""Divided nets: what is divided, by which optimisers it is trained, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dlblocks
from dlblocks.errors import UserError
from dlblocks.registry import names
from dlblocks.trainer import build_trainer

PROGRAM = """
import copy, json, os, warnings
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
import dlblocks
from dlblocks.errors import UserError
from dlblocks.registry import names
from dlblocks.sharding import check_optimizer, shard, whole

warnings.simplefilter("ignore")
torch.set_num_threads(1)
distributed.init_process_group("gloo")
mesh, found = init_device_mesh("cpu", (2,)), {"optimizers": {}}

for name in names("optimizer"):
    try:
        check_optimizer(lambda net: dlblocks.optimizer(name, net), mesh)
        found["optimizers"][name] = None
    except UserError as error:
        found["optimizers"][name] = str(error)


class Blocks(nn.Module):
    # Blocks in a list, attention that reads the weights of its parts, and parameters of its own.
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 7, 0.0, batch_first=True) for _ in range(2))
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.last(x).mean(1) * self.scale


torch.manual_seed(0)
nets = {
    "mlp": (dlblocks.model("mlp", (7,), 3, "prelu", width=5), torch.randn(8, 7)),
    "convnet": (dlblocks.model("convnet", (1, 8, 8), 3, "swish_beta"), torch.randn(8, 1, 8, 8)),
    "blocks": (Blocks(), torch.randn(8, 3, 6)),
}
for name, (net, x) in nets.items():
    twin = copy.deepcopy(net)
    shard(net, mesh)
    shard(net, mesh)  # a second time changes nothing
    ours, theirs = net(x), twin(x)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradients = zip(net.parameters(), twin.parameters(), strict=True)
    sizes = torch.tensor(sum(p.to_local().numel() for p in net.parameters()))
    distributed.all_reduce(sizes)
    found[name] = {
        "output": float((ours - theirs).abs().max()),
        "gradient": max(float((whole(a.grad) - b.grad).abs().max()) for a, b in gradients),
        "keys": list(whole(net.state_dict())) == list(twin.state_dict()),
        "held by all": int(sizes),
        "parameters": sum(p.numel() for p in twin.parameters()),
    }

single = nn.Sequential(nn.Linear(2, 2))
single.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
try:
    shard(single, mesh)
except UserError as error:
    found["single"] = str(error)
if distributed.get_rank() == 0:
    print("found " + json.dumps(found), flush=True)
distributed.barrier()
os._exit(0)
"""


@pytest.fixture(scope="module")
def found(script: Callable[..., str]) -> dict[str, Any]:
    (line,) = (line for line in script(PROGRAM, processes=2).splitlines() if line.startswith("found "))
    values: dict[str, Any] = json.loads(line.removeprefix("found "))
    return values


@pytest.mark.parametrize("net", ["mlp", "convnet", "blocks"])
def test_a_divided_net_computes_what_the_whole_one_does(found: dict[str, Any], net: str) -> None:
    about = found[net]
    assert about["output"] < 1e-5
    assert about["gradient"] < 1e-5
    assert about["keys"]
    assert about["held by all"] == about["parameters"]


def test_a_number_without_dimension_is_refused(found: dict[str, Any]) -> None:
    assert "temperature is a single number" in found["single"]


def test_every_optimizer_works_or_is_refused(found: dict[str, Any]) -> None:
    assert list(found["optimizers"]) == names("optimizer")
    refused = {name: message for name, message in found["optimizers"].items() if message}
    # What torch, this library and most recipes train with.
    assert not refused.keys() & {
        "sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "adamax", "asgd",
        "lion", "lamb", "adopt", "adabelief", "muon", "schedule_free_adamw", "sam", "lookahead", "cautious_adamw",
    }  # fmt: skip
    # Those that look at all parameters as one vector, or draw random numbers.
    assert {"lbfgs", "noisy_sgd", "sgld"} <= refused.keys()
    assert len(refused) < len(names("optimizer")) / 2
    for name, message in refused.items():
        assert message.startswith("optimizer"), name


def test_precisions_of_divided_nets(tmp_path: Path) -> None:
    config = {"accelerator": "cpu", "devices": 2, "strategy": "fsdp2", "precision": "64-true"}
    with pytest.raises(UserError, match="strategy=fsdp2 has 32-true, bf16-mixed, bf16-true"):
        build_trainer(config, [], [], tmp_path)


def test_a_ready_optimizer_is_refused() -> None:
    net = torch.nn.Linear(3, 2)
    module = dlblocks.LitModule(
        task="multiclass",
        input_shape=(3,),
        outputs=2,
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
    )
    module._device_mesh = {"data_parallel": None}  # type: ignore[assignment]
    with pytest.raises(UserError, match="a ready one holds the parameters from before"):
        module.configure_optimizers()
