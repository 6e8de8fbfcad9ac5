"""`model=torchvision` and `model=timm` in recipes, and the predefined models as blocks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.models import predefined

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
SHAPE = (1, 32, 32)


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments, "trainer.max_epochs=1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("data", ["digits", "digit_pairs"])
def test_the_command_line_trains_them(library: str, data: str, tmp_path: Path) -> None:
    done = train(tmp_path, f"model={library}", "model.name=resnet18", f"data={data}")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob(f"runs/*/*-{data}-resnet18/result.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["model=torchvision", "model.name=resnet81"],
            "model.name=resnet81: no such model. Did you mean 'resnet18'",
        ),
        (["model=timm", "model.name=resnet81"], "model.name=resnet81: no such model. Did you mean"),
        (["model=torchvision", "data=diabetes"], "takes pictures (channels, height, width)"),
        (["model=torchvision", "model.name=vit_b_16"], "model.name=vit_b_16: can't take pictures of 1x8x8"),
        (["model=torchvision", "model.weights=DEFALT"], "torchvision has none of this name for resnet18"),
        (["model=torchvision", "model.width=3"], "model has no 'width'"),
        (["model=torchvision", "activation=maxout"], "takes 2 times the features"),
        (["model=torchvision", "regime=sgd"], "data.batch_size=1: each batch has one instance"),
        (["model=timm", "regime=sgd"], "data.batch_size=1: each batch has one instance"),
        (["model=torchvision", "model.name=googlenet", "activation=elu"], "Its code calls relu"),
    ],
)
def test_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = train(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def recipe(*arguments: str) -> dict[str, Any]:
    return dlblocks.compose("data=digit_pairs", *arguments)


def test_default_leaves_the_model_as_its_authors_made_it() -> None:
    composed = recipe("model=torchvision")
    assert composed["activation"] == {"name": "default"}
    assert composed["init"]["name"] == "default"
    module = dlblocks.LitModule(
        task="multiclass",
        input_shape=(3, 32, 32),
        outputs=10,
        model={"name": "torchvision"},
        activation="default",
        init="default",
        seed=3,
    )
    with torch.random.fork_rng():
        from dlblocks.seeds import derive

        torch.manual_seed(derive(3, "weights"))
        reference = torchvision.models.resnet18(num_classes=10)
    for (name, ours), theirs in zip(
        module.net.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert [type(m) for m in module.net.modules()] == [type(m) for m in reference.modules()]


def test_activation_and_init_change_it() -> None:
    module = dlblocks.LitModule(
        task="multiclass",
        input_shape=SHAPE,
        outputs=10,
        model={"name": "timm", "model": "resnet18"},
        activation="gelu",
        init="ones",
    )
    assert not any(isinstance(m, nn.ReLU) for m in module.net.modules())
    assert any(isinstance(m, nn.GELU) for m in module.net.modules())
    assert all((m.weight == 1).all() for m in module.net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "squeezenet1_1", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"]
)
def test_channels_and_outputs_of_torchvision(name: str) -> None:
    for channels in (1, 2, 3):
        net = dlblocks.model("torchvision", (channels, 64, 64), 7, "default", model=name).eval()
        assert net(torch.zeros(2, channels, 64, 64)).shape == (2, 7)


def test_a_grey_picture_gives_what_it_gives_in_three_colours() -> None:
    torch.manual_seed(0)
    grey = dlblocks.model("torchvision", (1, 64, 64), 5, "default", model="resnet18").eval()
    torch.manual_seed(0)
    colour = torchvision.models.resnet18(num_classes=5).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_timm_fits_channels_and_outputs() -> None:
    net = dlblocks.model("timm", (2, 64, 64), 7, "default", model="resnet18").eval()
    assert net(torch.zeros(2, 2, 64, 64)).shape == (2, 7)


def test_pictures_are_resized() -> None:
    net = dlblocks.model("torchvision", (1, 8, 8), 3, "default", model="convnext_tiny", image_size=32)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "inception_v3", "vit_b_16"]
)
def test_trained_weights_but_for_the_last_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a download: what it would bring is a state of the full model."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    trained = torchvision.models.get_model(name, weights=None, **options).state_dict()
    monkeypatch.setattr(
        torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: trained, raising=True
    )
    size = {"vit_b_16": 224, "inception_v3": 299}.get(name, 64)
    net = dlblocks.model("torchvision", (3, size, size), 5, "default", model=name, weights="DEFAULT")
    last = predefined._last(net)
    for key, value in net.state_dict().items():
        assert torch.equal(value, trained[key]) != key.startswith(f"{last}."), key
    assert net.eval()(torch.zeros(1, 3, size, size)).shape == (1, 5)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fails)
    with pytest.raises(UserError, match=r"model.name=resnet18: its trained weights can't be had: no route"):
        dlblocks.model("torchvision", SHAPE, 5, "default", weights="DEFAULT")
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(UserError, match=r"model.name=resnet18: its trained weights can't be had: no route"):
        dlblocks.model("timm", SHAPE, 5, "default", pretrained=True)
