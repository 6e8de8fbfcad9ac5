"""torchvision's and timm's models divided between two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import copy, os, warnings
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
import dlblocks
from dlblocks.sharding import shard, whole

warnings.simplefilter("ignore")
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for library, name, size in (
    ("torchvision", "resnet18", 32), ("torchvision", "densenet121", 32), ("timm", "vit_tiny_patch16_224", 224),
    ("timm", "convnext_atto", 64),
):
    torch.manual_seed(0)
    net = dlblocks.model({"name": library, "model": name}, (3, size, size), 5, "default").eval()
    twin, x = copy.deepcopy(net), torch.randn(2, 3, size, size)
    shard(net, mesh)
    ours, theirs = net(x), twin(x)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(whole(a.grad), b.grad, rtol=1e-3, atol=1e-5)
    assert sum(p.to_local().numel() for p in net.parameters()) < 0.6 * sum(p.numel() for p in twin.parameters())
distributed.barrier()
os._exit(0)
"""


def test_divided_models_compute_what_whole_ones_do(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
