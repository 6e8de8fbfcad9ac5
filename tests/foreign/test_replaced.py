"""`replace_activations` on the models of torchvision, timm and transformers."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.surgery import find_activations

TORCHVISION = [
    "resnet18",
    "mobilenet_v3_small",
    "vgg11",
    "densenet121",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]
TIMM = [
    "resnet18",
    "convnext_atto",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "resnext26ts",
    "vit_tiny_patch16_224",
]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
}
TRANSFORMERS: dict[str, Callable[[str], nn.Module]] = {
    "bert": lambda act: transformers.BertModel(transformers.BertConfig(hidden_act=act, **SMALL)),
    "gpt2": lambda act: transformers.GPT2Model(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, activation_function=act)
    ),
    "llama": lambda act: transformers.LlamaModel(transformers.LlamaConfig(hidden_act=act, **SMALL)),
}


def vision(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None).eval()


def replaced(model: nn.Module, activation: Any, **asked: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*called in the code of a module")
        return dlblocks.replace_activations(model, activation, **asked)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    model = vision(name)
    before = find_activations(model)
    changed = replaced(model, "elu")
    kinds = {item.kind for item in find_activations(changed) if item.how == "module" and not item.spared}
    assert kinds == {"ELU"}
    assert [item for item in find_activations(changed) if item.spared] == [
        item for item in before if item.spared
    ]
    assert find_activations(model) == before
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert changed(torch.randn(1, 3, 224, 224)).isfinite().all()


def test_torchvision_computes_what_hooks_would_make_it_compute() -> None:
    """Independent of the surgery: the output of every ReLU is exchanged on the fly."""
    model = vision("resnet18")
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    changed, x = replaced(model, "silu"), torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, inputs, __: torch.nn.functional.silu(inputs[0]))
    torch.testing.assert_close(changed(x), model(x))


def test_functions_in_the_code_are_told() -> None:
    with pytest.warns(UserWarning, match=r"activation=gelu: .* stay: relu in DenseNet\."):
        dlblocks.replace_activations(vision("densenet121"), "gelu")
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    with pytest.raises(UserError, match="Its code calls relu, which stays"):
        dlblocks.replace_activations(model, "gelu")


def test_functions_in_the_code_are_told_whatever_is_asked_for() -> None:
    with pytest.warns(UserWarning, match=r"activation=gelu: .* stay: relu in DenseNet\."):
        dlblocks.replace_activations(vision("densenet121"), "gelu", types=nn.ReLU)


def test_activations_of_timms_own_models_are_replaced_whole() -> None:
    model = timm.create_model("poolformerv2_s12", pretrained=False)
    changed = replaced(model, "silu")
    kinds = {item.kind for item in find_activations(changed) if not item.spared}
    assert {item.kind for item in find_activations(model)} >= {"StarReLU"}
    assert kinds == {"SiLU"}


@pytest.mark.parametrize("name", TIMM)
def test_timm_with_its_own_layers_of_that_activation(name: str) -> None:
    own = {
        "resnet18": "silu",
        "efficientnet_b0": "relu",
        "mobilenetv3_small_100": "gelu",
        "resnext26ts": "relu",
    }
    act = own.get(name, "silu")
    model = timm.create_model(name, pretrained=False).eval()
    reference = timm.create_model(name, pretrained=False, act_layer=act).eval()
    reference.load_state_dict(model.state_dict())
    # timm's act_layer reaches the squeeze-and-excite blocks of some families and not of others.
    changed = replaced(model, act, pattern="*")
    size = model.default_cfg["input_size"][1:]
    x = torch.randn(1, 3, *size)
    inner = {item.name for item in find_activations(changed) if item.kind.lower() != act and not item.spared}
    assert not {item for item in inner if "Identity" not in item}
    same_places = [i.name for i in find_activations(reference) if i.kind.lower() == act]
    if same_places == [i.name for i in find_activations(changed) if i.kind.lower() == act]:
        with torch.no_grad():
            torch.testing.assert_close(changed(x), reference(x), rtol=1e-4, atol=1e-4)
    else:
        assert name in ("efficientnet_b0", "mobilenetv3_small_100", "resnext26ts")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_with_their_own_activation(name: str) -> None:
    model, reference = TRANSFORMERS[name]("gelu").eval(), TRANSFORMERS[name]("relu").eval()
    reference.load_state_dict(model.state_dict())
    changed = replaced(model, "relu", types="gelu")
    tokens = torch.randint(0, 20, (2, 7))
    with torch.no_grad():
        got, wanted = (net(tokens).last_hidden_state for net in (changed, reference))
    torch.testing.assert_close(got, wanted)
    with torch.no_grad():
        assert not torch.allclose(got, model(tokens).last_hidden_state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: vision("resnet18"),
        lambda: timm.create_model("resnet18", pretrained=False).eval(),
    ],
    ids=["torchvision", "timm"],
)
def test_what_others_do_with_nets_still_works(make: Callable[[], nn.Module]) -> None:
    changed, x = replaced(make(), "prelu", pattern="layer[34]*"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = changed(x)
        torch.testing.assert_close(copy.deepcopy(changed)(x), wanted)
        torch.testing.assert_close(pickle.loads(pickle.dumps(changed))(x), wanted)
        torch.testing.assert_close(
            torch.export.export(changed, (x,)).module()(x), wanted, rtol=1e-4, atol=1e-4
        )
        compiled = torch.compile(changed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-4)
    again = replaced(make(), "prelu", pattern="layer[34]*")
    again.load_state_dict(changed.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(x), wanted)
    changed(x).sum().backward()
    assert all(p.grad is not None for p in changed.parameters())
