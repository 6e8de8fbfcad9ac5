"""Models of others are diagnosed and initialised without error."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import dlblocks


def pictures(size: int, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 3
    return torch.randn(rows, 3, size, size, generator=draw) + y[:, None, None, None], y


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 3, 4, 48, 96, num_classes=3)


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=3)


def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=3)


@pytest.mark.parametrize("build", [resnet, mobilenet, small_vit])
def test_torchvision(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    kept = copy.deepcopy(model.state_dict())
    found = dlblocks.diagnose(model, pictures(32), trials=False)
    assert found.verdict.outcome in ("trains", "unclear", "slow"), found.lines()
    assert len(found.signal.layers) > 5
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 224), ("efficientnet_b0", 64)])
def test_timm(name: str, size: int) -> None:
    torch.manual_seed(0)
    found = dlblocks.diagnose(timm.create_model(name, num_classes=3), pictures(size, 6), trials=False)
    assert found.verdict.outcome in ("trains", "unclear", "slow"), found.lines()


def test_torchvision_by_trials() -> None:
    torch.manual_seed(0)
    model = small_vit()
    kept = copy.deepcopy(model.state_dict())
    found = dlblocks.diagnose(model, pictures(32, 48), optimizer="adam", lr=1e-3, batch_size=8)
    assert found.verdict.outcome == "trains", found.lines()
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("trials", [False, True])
def test_a_transformer_of_words(trials: bool) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    words = torch.randint(0, 50, (64, 12), generator=torch.Generator().manual_seed(0))
    found = dlblocks.diagnose(model, (words, words[:, 0] % 3), optimizer="adam", lr=3e-3, trials=trials)
    assert found.signal.finite
    assert not trials or found.verdict.outcome in ("trains", "slow"), found.lines()


def test_auto_initialises_a_resnet_that_then_trains() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    x, y = pictures(32, 24)
    dlblocks.initialize(model, "auto", batch=x, generator=torch.Generator().manual_seed(0))
    optimizer = dlblocks.optimizer("adam", model, lr=1e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 2.0
    assert losses[-1] < 0.7 * losses[0]
