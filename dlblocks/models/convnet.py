"""A small convolutional net."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dlblocks.activations.width import widened, width_ratio
from dlblocks.errors import UserError
from dlblocks.factory import activation as build_activation
from dlblocks.registry import Spec


class OverChannels(nn.Module):
    """Applies an activation that works along the last dimension to the channels of `(N, C, H, W)`."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(x.movedim(1, -1))
        return out.movedim(-1, 1)


def convnet(
    input_shape: Sequence[int],
    outputs: int,
    activation: Spec = "relu",
    *,
    channels: Sequence[int] = (32, 64),
    kernel_size: int = 3,
    dropout: float = 0.0,
    norm: str = "batch",
) -> nn.Sequential:
    """Convolutions with padding, each followed by a 2 x 2 maximum while the picture is large enough,
    then the mean over all places and a linear output layer.

    Shape: `(N, C, H, W)` to `(N, outputs)`.

    Args:
        input_shape: `(C, H, W)` of one instance.
        outputs: numbers given for each instance.
        activation: of the convolutions; each gets an instance of its own. A convolution before an
            activation that takes more channels than it gives (maxout, GLU) has so many more.
        channels: of each convolution, after the activation.
        kernel_size: height and width of each kernel; odd, so that the picture keeps its size.
        dropout: probability that a whole channel is zeroed in training.
        norm: `none`, `batch`, or `layer` (over all channels and places), before each activation.

    Raises:
        UserError: the instances are not pictures, or the kernel size is even.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"model=convnet: needs pictures (channels, height, width); an instance here is"
            f" {tuple(input_shape)}. Use model=mlp, or data of pictures such as data=digits."
        )
    if kernel_size % 2 == 0:
        raise UserError(f"model.kernel_size={kernel_size}: must be odd, such as 3 or 5.")
    ratio = width_ratio(activation)
    layers: list[nn.Module] = []
    size, height, width = input_shape
    for hidden in channels:
        wide = widened(hidden, ratio)
        layers.append(nn.Conv2d(size, wide, kernel_size, padding=kernel_size // 2))
        if norm != "none":
            layers.append(nn.BatchNorm2d(wide) if norm == "batch" else nn.GroupNorm(1, wide))
        layers.append(_over_channels(activation))
        if dropout:
            layers.append(nn.Dropout2d(dropout))
        if min(height, width) >= 4:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        size = hidden
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, outputs))


def _over_channels(activation: Spec) -> nn.Module:
    built = build_activation(activation)
    return OverChannels(built) if getattr(built, "dim", None) == -1 else built
