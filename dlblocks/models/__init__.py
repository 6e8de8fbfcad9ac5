"""The catalogue of models: one entry a net. A model takes the shape of one instance, the number of
outputs, and blocks; it gives logits or values `(N, outputs)`."""

from __future__ import annotations

from dlblocks.records import Block, Param

_DROPOUT = Param("dropout", 0.0, "float", "probability that a hidden feature is zeroed in training", "[0, 1)")
_IMAGE_SIZE = Param(
    "image_size", None, "int", "pictures are first resized to this height and width", "[1, inf)"
)

BLOCKS: tuple[Block, ...] = (
    Block(
        kind="model",
        name="mlp",
        target="dlblocks.models.mlp:mlp",
        params=(
            Param("width", 128, "int", "features of each hidden layer", "[1, inf)"),
            Param("depth", 2, "int", "hidden layers", "[0, inf)"),
            Param(
                "widths",
                None,
                "ints",
                "features of each hidden layer, one by one, in place of width and depth",
                "[1, inf)",
            ),
            _DROPOUT,
            Param(
                "norm",
                "none",
                "str",
                "normalisation before each activation",
                choices=("none", "batch", "layer"),
            ),
        ),
        summary="Fully connected layers: the instance is flattened.",
        formula="h = dropout(activation(norm(W h + b))) for each hidden layer; output = W h + b",
        shape="(N, *) -> (N, outputs)",
        source="Rumelhart et al. 1986 (Nature 323)",
    ),
    Block(
        kind="model",
        name="convnet",
        target="dlblocks.models.convnet:convnet",
        params=(
            Param("channels", (32, 64), "ints", "channels of each convolution", "[1, inf)"),
            Param("kernel_size", 3, "int", "height and width of each kernel; odd", "[1, inf)"),
            _DROPOUT,
            Param(
                "norm",
                "batch",
                "str",
                "normalisation before each activation",
                choices=("none", "batch", "layer"),
            ),
        ),
        summary="Convolutions, each followed by pooling while the picture is large enough; then the mean over places.",
        formula="h = pool(dropout(activation(norm(conv(h))))) for each layer; output = W mean(h) + b",
        shape="(N, channels, height, width) -> (N, outputs)",
        source="LeCun et al. 1998 (Proc. IEEE 86); global mean: Lin et al. 2013, arXiv:1312.4400",
        tags={"images": True},
    ),
    Block(
        kind="model",
        name="torchvision",
        target="dlblocks.models.predefined:torchvision",
        params=(
            Param("model", "resnet18", "str", "its name in torchvision"),
            Param("weights", None, "str", "of a trained one: DEFAULT or such as IMAGENET1K_V1; downloaded"),
            _IMAGE_SIZE,
        ),
        summary="A classification model of torchvision, as its authors made it unless activation or init say otherwise.",
        shape="(N, channels, height, width) -> (N, outputs)",
        source="torchvision.models",
        tags={"images": True, "predefined": True},
    ),
    Block(
        kind="model",
        name="timm",
        target="dlblocks.models.predefined:timm",
        params=(
            Param("model", "resnet18", "str", "its name in timm"),
            Param("pretrained", False, "bool", "with trained weights; downloaded"),
            _IMAGE_SIZE,
        ),
        summary="A model of timm, as its authors made it unless activation or init say otherwise.",
        shape="(N, channels, height, width) -> (N, outputs)",
        source="Wightman 2019 (github huggingface/pytorch-image-models)",
        tags={"images": True, "predefined": True},
    ),
)
