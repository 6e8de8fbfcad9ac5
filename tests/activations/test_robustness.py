"""Every activation in every format, layout and transform that torch's own hold in."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import dlblocks
from dlblocks.activations.width import width_ratio
from dlblocks.registry import REGISTRY, names

NAMES = names("activation")
ELEMENTWISE = [name for name in NAMES if REGISTRY.get("activation", name).tags["elementwise"]]
TRAINABLE = [name for name in NAMES if REGISTRY.get("activation", name).tags.get("trainable")]
OURS = [name for name in ELEMENTWISE if str(REGISTRY.get("activation", name).target).startswith("dlblocks")]
# What torch's own kernels don't do: keep channels-last; batch; derive twice.
CONTIGUOUS = {"log_sigmoid", "rrelu"}
UNBATCHED = {"rrelu"}
ONCE = {"hard_sigmoid"}
BATCHED = [name for name in NAMES if name not in UNBATCHED]
NARROW = [torch.float16, torch.bfloat16]


def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return dlblocks.activation(name).to(dtype).eval()


def points(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random points with both signs, none on a kink."""
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def every_finite(dtype: torch.dtype) -> Tensor:
    """Every finite number of a format of 16 bits: both zeros, subnormals, the largest."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return every[every.isfinite()]


def value_and_gradient(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = activation(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def misses(got: Tensor, exact: Tensor, ulps: float, floor: float) -> Tensor:
    """Where `got` is further than `ulps` units in the last place, and `floor`, from the exact numbers that
    its format can hold."""
    limits = torch.finfo(got.dtype)
    representable = exact.abs() <= limits.max
    allowed = ulps * limits.eps * exact.abs() + floor + ulps * limits.smallest_normal * limits.eps
    return representable & ~((got.double() - exact).abs() <= allowed)


# Beside 2 ulps, an absolute error in units of the format's eps where torch's kernels compute from rounded numbers.
LOOSE = {
    "gelu": 1e-3,  # 1 + erf(x) cancels in float32
    "sigmoid": 0.5,  # the gradient y (1 - y) is of the rounded y
    "tanh": 1.0,  # the gradient 1 - y^2 is of the rounded y
    "tanh_shrink": 1.0,  # x - tanh(x) cancels
    "softsign": 0.5,  # step by step
}
# What float32 itself can't hold: results below its normal numbers; x^2 above its largest for squareplus.
UNDERFLOW = {"squareplus": 1e-19}
# Share of the largest number from which torch's kernels overflow in float32, which bfloat16 reaches.
OVERFLOW = {"gelu": 1 / 2, "hardswish": 1 / 6}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_narrow_formats_are_exact_to_2_ulps_for_every_number(name: str, dtype: torch.dtype) -> None:
    x = every_finite(dtype)
    if dtype is torch.bfloat16:
        x = x[x.abs() < OVERFLOW.get(name, 2.0) * torch.finfo(dtype).max]
    narrow = built(name, dtype)
    reference = built(name)
    reference.load_state_dict(narrow.state_dict())
    floor = LOOSE.get(name, 0.0) * torch.finfo(dtype).eps + UNDERFLOW.get(name, 3e-37)
    exact = value_and_gradient(reference, x.double())
    for autocast in (False, True):
        with torch.autocast("cpu", dtype, enabled=autocast):
            for kind, got, true in zip(
                ("value", "gradient"), value_and_gradient(narrow, x), exact, strict=True
            ):
                missed = misses(got, true, ulps=2, floor=floor)
                assert not missed.any(), (kind, x[missed][:5], got[missed][:5], true[missed][:5])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", OURS)
def test_float32_under_autocast_stays_exact(name: str, dtype: torch.dtype) -> None:
    x = points(1000, dtype=torch.float32)
    expected = value_and_gradient(built(name, torch.float32), x)
    with torch.autocast("cpu", dtype):
        got = value_and_gradient(built(name, torch.float32), x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OURS)
def test_float32_holds_at_its_ends(name: str) -> None:
    limits = torch.finfo(torch.float32)
    sizes = [0.0, limits.smallest_normal / 4, limits.smallest_normal, 1e-8, 1e8, 1e19, 1e30, limits.max]
    x = torch.tensor([sign * size for size in sizes for sign in (1, -1)])
    exact = value_and_gradient(built(name), x.double())
    for got, true in zip(value_and_gradient(built(name, torch.float32), x), exact, strict=True):
        missed = misses(got, true, ulps=4, floor=UNDERFLOW.get(name, 3e-37))
        assert not missed.any(), (x[missed], got[missed], true[missed])


@pytest.mark.parametrize("name", NAMES)
def test_empty_batches(name: str) -> None:
    width = int(4 * width_ratio(name))
    x = torch.empty(0, width, requires_grad=True)
    y = dlblocks.activation(name)(x)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, width)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1),
    "strided": lambda x: x[::2, ::2],
    "expanded": lambda x: x[:1].expand(6, 6, 4, 4),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_layouts_change_no_value(name: str, layout: str) -> None:
    x = LAYOUTS[layout](points(6, 6, 4, 4))
    activation = built(name)
    torch.testing.assert_close(
        value_and_gradient(activation, x), value_and_gradient(activation, x.contiguous())
    )


@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name not in CONTIGUOUS])
def test_channels_last_is_kept(name: str) -> None:
    x = points(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert built(name)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", BATCHED)
def test_vmap_is_a_loop(name: str) -> None:
    activation = built(name)
    x = points(3, 5, 6)
    torch.testing.assert_close(vmap(activation)(x), torch.stack([activation(one) for one in x]))
    torch.testing.assert_close(
        vmap(grad(lambda one: activation(one).square().sum()))(x),
        torch.stack([grad(lambda one: activation(one).square().sum())(one) for one in x]),
    )


# torch's forward mode scripts its own rules.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", BATCHED)
def test_jacobians_of_both_modes(name: str) -> None:
    activation, x, tangent = built(name), points(6), torch.arange(1.0, 7.0, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(activation, x)
    torch.testing.assert_close(jacrev(activation)(x), expected)
    torch.testing.assert_close(jvp(activation, (x,), (tangent,))[1], expected @ tangent)


@pytest.mark.parametrize("name", TRAINABLE)
def test_ensembles_hold_a_parameter_for_each_model(name: str) -> None:
    models = [built(name) for _ in range(3)]
    for factor, model in enumerate(models, 1):
        for parameter in model.parameters():
            parameter.data *= factor
    parameters, buffers = stack_module_state(models)
    x = points(3, 5, 6)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,)).square().sum()

    got = vmap(grad(loss))(parameters, buffers, x)
    for key in parameters:
        expected = [
            grad(loss)(dict(m.named_parameters()), {}, one)[key] for m, one in zip(models, x, strict=True)
        ]
        torch.testing.assert_close(got[key], torch.stack(expected))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONCE])
def test_second_derivatives(name: str) -> None:
    # Squared, so that straight pieces have one to check.
    activation, x = built(name), points(2, 6).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: activation(x).square(), x)


@pytest.mark.parametrize("name", NAMES)
def test_copies_compute_the_same(name: str) -> None:
    activation, x = built(name), points(4, 6)
    for twin in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert torch.equal(twin(x), activation(x))
        assert repr(twin) == repr(activation)


class Every(nn.Module):
    """All activations at once, for one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(dlblocks.activation(name).eval() for name in NAMES)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [activation(x) for activation in self.each]


def test_export_has_no_breaks() -> None:
    every, x = Every().eval(), points(4, 6, dtype=torch.float32)
    exported = torch.export.export(every, (x,)).module()
    for name, got, expected in zip(NAMES, exported(x), every(x), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_compiled_graphs_compute_the_same() -> None:
    every, x = Every(), points(4, 6, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own
        compiled = torch.compile(every, fullgraph=True)
        results = []
        for run in (every, compiled):
            leaf = x.clone().requires_grad_()
            values = run(leaf)
            gradients = torch.autograd.grad(
                torch.cat([value.square().flatten() for value in values]).sum(), [leaf, *every.parameters()]
            )
            results.append((values, gradients))
    (values, gradients), (fast_values, fast_gradients) = results
    for name, got, expected in zip(NAMES, fast_values, values, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(fast_gradients, gradients, rtol=1e-4, atol=1e-4)


def test_sparsemax_holds_masked_and_tied_scores() -> None:
    sparsemax = dlblocks.activation("sparsemax")
    masked = torch.tensor([1.0, -torch.inf, 0.5], requires_grad=True)
    y = sparsemax(masked)
    torch.testing.assert_close(y, torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(torch.autograd.grad(y[0], masked)[0], torch.tensor([0.5, 0.0, -0.5]))
    torch.testing.assert_close(sparsemax(torch.full((7,), 0.1)), torch.full((7,), 1 / 7))


def test_compiled_squareplus_has_its_slope_at_zero_too() -> None:
    squareplus = dlblocks.activation("squareplus")
    x = torch.zeros(3, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own
        y = torch.compile(squareplus, fullgraph=True)(x)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.full((3,), 0.5))
