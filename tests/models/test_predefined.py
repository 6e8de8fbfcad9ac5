"""What of predefined models needs no torchvision or timm; the rest is in tests/foreign."""

from __future__ import annotations

import sys

import pytest
from torch import nn

import dlblocks
from dlblocks.errors import MissingPackageError, UserError
from dlblocks.recipe import check


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_without_the_package_the_message_says_what_brings_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingPackageError, match=rf"model={library}: .*pip install 'dlblocks\[{library}\]'"):
        dlblocks.model(library, (1, 8, 8), 3)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_they_bring_their_own_activation_and_init_unless_told(library: str) -> None:
    composed = dlblocks.compose(f"model={library}", "model.name=vgg11")
    checked = check(composed)
    assert checked.blocks["model"]["name"] == library
    assert checked.blocks["model"]["model"] == "vgg11"
    assert checked.blocks["activation"] == "default"
    assert checked.blocks["init"]["name"] == "default"
    assert composed["name"] == "digits-vgg11"
    told = check(dlblocks.compose(f"model={library}", "activation=elu", "init=orthogonal"))
    assert (told.blocks["activation"]["name"], told.blocks["init"]["name"]) == ("elu", "orthogonal")


def test_default_is_relu_in_our_own_nets() -> None:
    net = dlblocks.model("mlp", (4,), 2, "default", depth=1)
    assert isinstance(net[1], nn.ReLU)
    module = dlblocks.LitModule(task="multiclass", input_shape=(4,), outputs=3, activation="default")
    assert module.hparams["activation"] == "default"
    assert isinstance(module.net[1], nn.ReLU)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["activation=default", "+activation.alpha=1"],
            r"activation\.alpha: activation=default has no parameters",
        ),
        (
            ["model=torchvision", "model.library=torchvison"],
            r"model\.library: unknown model 'torchvison'. Did you",
        ),
        (["model=torchvision", "model.library=mlp"], r"model\.library=mlp: is a model of its own"),
        (["model=timm", "model.image_size=0"], r"model\.image_size=0: must be a whole number in \[1, inf\)"),
    ],
)
def test_one_message(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(dlblocks.compose(*overrides))
