"""Models of torchvision and timm, fitted to the data's channels and to the number of outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from dlblocks.errors import MissingPackageError, UserError, did_you_mean, first_line
from dlblocks.probing import probed
from dlblocks.registry import Spec, name_of
from dlblocks.surgery import replace_activations

_COLOURS = 3


def torchvision(
    input_shape: Sequence[int],
    outputs: int,
    activation: Spec = "default",
    *,
    model: str = "resnet18",
    weights: str | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """A classification model of torchvision.

    Shape: `(N, channels, height, width)` to `(N, outputs)`.

    Args:
        input_shape: `(channels, height, width)`. For other than three channels, the first convolution has
            the mean of its own weights over the colours, scaled so that a grey picture gives the same.
        outputs: numbers given for each instance.
        activation: `default` leaves the model as its authors made it; else see `replace_activations`.
        model: its name in torchvision, such as `resnet18`.
        weights: of a trained one, `DEFAULT` or such as `IMAGENET1K_V1`; its last layer starts anew.
        image_size: pictures are first resized to this height and width.

    Raises:
        MissingPackageError: torchvision is not installed.
        UserError: no such model or weights, data that are no pictures, or pictures too small for it.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise _missing("torchvision", error) from error
    names = models.list_models(module=models)
    _check_name(model, names, "torchvision.models.list_models(module=torchvision.models)")
    options: dict[str, Any] = {} if weights else {"num_classes": outputs}
    if model in ("googlenet", "inception_v3") and not weights:
        options |= {"aux_logits": False, "init_weights": True}
    if weights is not None:
        legal = [str(name) for name in models.get_model_weights(model).__members__]
        if weights not in (*legal, "DEFAULT"):
            raise UserError(
                f"model.weights={weights}: torchvision has none of this name for {model}."
                f"{did_you_mean(weights, legal)} It has {', '.join(legal) or 'none'}."
            )

    def build() -> nn.Module:
        built: nn.Module = models.get_model(model, weights=weights, **options)
        if weights is not None:
            # Side outputs, which two of the models were trained with, are for a loss of their own.
            for side in ("aux1", "aux2", "AuxLogits"):
                if hasattr(built, side):
                    setattr(built, side, None)
                    built.aux_logits = False  # type: ignore[assignment]
            _replace(built, _last(built), outputs)
        if input_shape[0] != _COLOURS:
            _replace(built, _first(built), input_shape[0])
        return built

    return _fitted(build, input_shape, outputs, activation, model, image_size, bool(weights))


def timm(
    input_shape: Sequence[int],
    outputs: int,
    activation: Spec = "default",
    *,
    model: str = "resnet18",
    pretrained: bool = False,
    image_size: int | None = None,
) -> nn.Module:
    """A model of timm, PyTorch Image Models.

    Shape: `(N, channels, height, width)` to `(N, outputs)`.

    Args:
        input_shape: `(channels, height, width)`; timm fits the first layer to the channels.
        outputs: numbers given for each instance.
        activation: `default` leaves the model as its authors made it; else see `replace_activations`.
        model: its name in timm, such as `resnet18`.
        pretrained: with trained weights; its last layer starts anew.
        image_size: pictures are first resized to this height and width.

    Raises:
        MissingPackageError: timm is not installed.
        UserError: no such model or weights, data that are no pictures, or pictures too small for it.
    """
    try:
        import timm as package
    except ImportError as error:
        raise _missing("timm", error) from error
    _check_name(model.partition(".")[0], package.list_models(), "timm.list_models()")

    def build() -> nn.Module:
        built: nn.Module = package.create_model(
            model, pretrained=pretrained, num_classes=outputs, in_chans=input_shape[0]
        )
        return built

    return _fitted(build, input_shape, outputs, activation, model, image_size, pretrained)


def _fitted(
    build: Callable[[], nn.Module],
    input_shape: Sequence[int],
    outputs: int,
    activation: Spec,
    name: str,
    image_size: int | None,
    trained: bool,
) -> nn.Module:
    if len(input_shape) != 3:
        raise UserError(
            f"model.name={name}: takes pictures (channels, height, width); an instance of this data set has"
            f" the shape {tuple(input_shape)}. Take model=mlp, or a data set of pictures such as digit_pairs."
        )
    try:
        net = build()
    except (URLError, OSError, RuntimeError) as error:
        if not trained:
            raise
        raise UserError(f"model.name={name}: its trained weights can't be had: {error}") from error
    if name_of(activation) != "default":
        net = replace_activations(net, activation, inplace=True)
    if image_size is not None:
        net = nn.Sequential(nn.Upsample((image_size, image_size), mode="bilinear"), net)
    _try(net, input_shape, outputs, name)
    return net


def _try(net: nn.Module, input_shape: Sequence[int], outputs: int, name: str) -> None:
    """Once on pictures of zeros: what is too small for the model is told now, not in training."""
    try:
        with probed(net), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = net(torch.zeros(2, *input_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = "x".join(map(str, input_shape))
        reason = first_line(error)
        raise UserError(
            f"model.name={name}: can't take pictures of {shape} ({reason}). Set model.image_size, such as 224."
        ) from error
    if getattr(got, "shape", None) != (2, outputs):
        raise UserError(
            f"model.name={name}: gives no single number for each output, so it can't be trained here."
        )


def _check_name(name: str, names: Sequence[str], listing: str) -> None:
    if name not in names:
        raise UserError(
            f"model.name={name}: no such model.{did_you_mean(name, names)} There are {len(names)}; {listing}"
            " lists them."
        )


def _missing(package: str, error: ImportError) -> MissingPackageError:
    return MissingPackageError(
        f"model={package}: needs a package that is not installed, or that does not fit this torch"
        f" {torch.__version__} ({error}): pip install 'dlblocks[{package}]'"
    )


def _first(net: nn.Module) -> str:
    """The name of the layer that takes the colours."""
    found: str = next(
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels == _COLOURS
    )
    return found


def _last(net: nn.Module) -> str:
    """The name of the layer that gives the logits: the last linear one, or convolution where there is none."""
    layers = [
        (name, layer) for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    linear = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    found: str = (linear or [name for name, _ in layers])[-1]
    return found


def _replace(net: nn.Module, name: str, count: int) -> None:
    """The layer anew, with other inputs if it takes colours, else with other outputs."""
    parent, _, attribute = name.rpartition(".")
    old = net.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, count, bias=old.bias is not None)
    else:
        assert isinstance(old, nn.Conv2d)
        colours = old.in_channels == _COLOURS
        new = nn.Conv2d(
            count if colours else old.in_channels,
            old.out_channels if colours else count,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
        if colours:
            with torch.no_grad():
                mean = old.weight.mean(1, keepdim=True) * (_COLOURS / count)
                new.weight.copy_(mean.expand_as(new.weight))
                if old.bias is not None and new.bias is not None:
                    new.bias.copy_(old.bias)
    setattr(net.get_submodule(parent), attribute, new)
