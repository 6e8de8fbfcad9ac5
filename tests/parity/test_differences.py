"""Each difference that an activation, an initialiser or a scheduler declares is there, and is just that.

The library's numbers are ours with the declared change; timm's are in tests/foreign.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
import numpy as np
import pytest
import torch
from differing import CHECKS, RECORDED, X, checks_of, close, declared_of, default, differs
from pytorch_optimizer.lr_scheduler.chebyshev import get_chebyshev_lr_lambda
from torch import nn

import dlblocks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# Activations.


@differs("activation", "leaky_relu", "torch")
def _() -> None:
    assert nn.LeakyReLU().negative_slope == 0.01
    close(nn.LeakyReLU()(X), dlblocks.activation("leaky_relu", negative_slope=0.01)(X))


@differs("activation", "leaky_relu", "jax")
def _() -> None:
    ours = dlblocks.activation("leaky_relu", negative_slope=0.01)(X)
    close(RECORDED["activations"]["leaky_relu"]["y"], ours)


@differs("activation", "leaky_relu", "keras")
def _() -> None:
    assert default(keras.activations.leaky_relu, "negative_slope") == 0.2
    assert default(keras.layers.LeakyReLU, "negative_slope") == 0.3


@differs("activation", "prelu", "keras")
def _() -> None:
    layer = keras.layers.PReLU()
    layer.build((None, 3, 4))
    assert layer.alpha.shape == (3, 4)
    assert not layer.alpha.value.any()
    assert dlblocks.activation("prelu").weight.tolist() == [0.25]


@differs("activation", "gelu", "jax")
def _() -> None:
    close(RECORDED["activations"]["gelu"]["y"], dlblocks.activation("gelu", approximate="tanh")(X))
    assert not np.allclose(RECORDED["activations"]["gelu"]["y"], dlblocks.activation("gelu")(X), atol=1e-6)


@differs("activation", "threshold", "torch")
def _() -> None:
    for name in ("threshold", "value"):
        assert default(nn.Threshold, name) is inspect.Parameter.empty


@differs("activation", "sparsemax", "keras")
def _() -> None:
    ordered = X.sort(dim=-1, descending=True).values
    total, rank = ordered.cumsum(-1), torch.arange(1, X.shape[-1] + 1)
    support = ordered - (total - 1) / rank > 0
    threshold = ((total * support).sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    theirs = keras.activations.sparsemax(X)
    close(theirs, (X - threshold).clamp_min(0))
    assert not np.allclose(theirs, dlblocks.activation("sparsemax")(X))


# Initialisers.


@differs("initializer", "normal", "torch")
def _() -> None:
    assert default(nn.init.normal_, "std") == 1.0


@differs("initializer", "normal", "jax")
def _() -> None:
    assert RECORDED["initializers"]["normal"]["matrix"]["std"] == pytest.approx(0.01, rel=0.01)


@differs("initializer", "uniform", "torch")
def _() -> None:
    assert (default(nn.init.uniform_, "a"), default(nn.init.uniform_, "b")) == (0.0, 1.0)


@differs("initializer", "uniform", "jax")
def _() -> None:
    recorded = RECORDED["initializers"]["uniform"]["matrix"]
    assert (round(recorded["min"], 4), round(recorded["max"], 4)) == (0.0, 0.01)


@differs("initializer", "truncated_normal", "torch")
def _() -> None:
    values = nn.init.trunc_normal_(torch.empty(100_000), std=10.0)
    assert 1.99 < values.abs().max() <= 2
    ours = dlblocks.initializer("truncated_normal", std=10.0)(torch.empty(100_000))
    assert 19.9 < ours.abs().max() <= 20


@differs("initializer", "he_normal", "torch")
def _() -> None:
    assert nn.init.kaiming_normal_(torch.empty(300, 300)).abs().max() > 3 * math.sqrt(2 / 300)
    assert dlblocks.initializer("he_normal")(torch.empty(300, 300)).abs().max() < 2.3 * math.sqrt(2 / 300)


@differs("initializer", "glorot_normal", "torch")
def _() -> None:
    assert nn.init.xavier_normal_(torch.empty(300, 300)).abs().max() > 3 * math.sqrt(1 / 300)
    assert dlblocks.initializer("glorot_normal")(torch.empty(300, 300)).abs().max() < 2.3 * math.sqrt(1 / 300)


@differs("initializer", "variance_scaling", "keras")
def _() -> None:
    assert default(keras.initializers.VarianceScaling, "scale") == 1.0
    values = keras.initializers.VarianceScaling(distribution="normal", seed=0)(shape=(300, 300))
    # Keras draws a value anew three times; of a normal distribution, 2 % would lie beyond.
    assert (values.abs() > 2.3 * math.sqrt(1 / 300)).double().mean() < 1e-4
    ours = dlblocks.initializer("variance_scaling", distribution="normal")(torch.empty(300, 300))
    assert (ours.abs() > 2.3 * math.sqrt(1 / 300)).double().mean() > 0.01


@differs("initializer", "sparse", "torch")
def _() -> None:
    theirs = nn.init.sparse_(torch.empty(20, 10), sparsity=0.5)
    assert (theirs == 0).sum(0).tolist() == [10] * 10
    ours = dlblocks.initializer("sparse", sparsity=0.5)(torch.empty(20, 10))
    assert (ours == 0).sum(1).tolist() == [5] * 20


# Schedulers.


@differs("scheduler", "cosine", "torch")
def _() -> None:
    theta = torch.zeros(1, requires_grad=True)
    opt = torch.optim.SGD([theta], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 4, eta_min=0.1)
    rates = []
    for _ in range(8):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    assert rates[4] == pytest.approx(0.1)
    assert rates[7] > rates[5] > rates[4]


@differs("scheduler", "one_cycle", "torch")
def _() -> None:
    cycle = torch.optim.lr_scheduler.OneCycleLR
    assert default(cycle, "max_lr") is inspect.Parameter.empty
    assert default(cycle, "cycle_momentum") is True
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4, momentum=0.9)
    with pytest.raises(ZeroDivisionError):
        cycle(opt, 0.4, 10, pct_start=0.1)
    scheduler = cycle(opt, 0.4, 2)
    opt.step()
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="Tried to step 3 times"):
        scheduler.step()


def lrs(name: str, total: int, **params: Any) -> list[float]:
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = dlblocks.scheduler(name, opt, total_steps=total, **params)
    rates = []
    for _ in range(total):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


@differs("scheduler", "one_cycle", "optax")
def _() -> None:
    """Recorded with 19 transition_steps: int(0.3 * 19) = 5, and 0.3 * 20 - 1 = 5 too; of 21, 6 and not 5.6."""
    close(RECORDED["schedules"]["one_cycle"], lrs("one_cycle", 20))
    theirs = np.array(RECORDED["schedules"]["one_cycle of 21 steps"])
    assert theirs.argmax() == 6
    assert theirs[6] == pytest.approx(1.0)
    assert max(lrs("one_cycle", 22)[:20]) < 0.999


@differs("scheduler", "chebyshev", "pytorch-optimizer")
def _() -> None:
    theirs = [get_chebyshev_lr_lambda(epoch, 16) for epoch in range(18)]
    assert theirs[0] == theirs[1] == theirs[2]
    close(theirs[2:], lrs("chebyshev", 16))
    # Of 12 epochs, it takes the rates of 16.
    assert not set(lrs("chebyshev", 12)) & set(theirs)
    assert {get_chebyshev_lr_lambda(epoch, 12) for epoch in range(12)} < set(theirs)


@differs("scheduler", "polynomial", "torch")
def _() -> None:
    assert default(torch.optim.lr_scheduler.PolynomialLR, "total_iters") == 5


@differs("scheduler", "reduce_on_plateau", "keras")
def _() -> None:
    """A metric that stands still falls first after `patience` epochs there, after one more here."""
    callback = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=2, min_delta=0.1)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    callback.set_model(model)
    callback.on_train_begin()
    theirs = []
    for epoch in range(6):
        # Better by 0.05 each time: less than min_delta, absolute, though 5 % of the best or more.
        callback.on_epoch_end(epoch, {"loss": 1.0 - 0.05 * epoch * (epoch < 2)})
        theirs.append(float(model.optimizer.learning_rate))
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = dlblocks.scheduler(
        "reduce_on_plateau", opt, factor=0.5, patience=2, threshold=0.1, threshold_mode="abs"
    )
    rates = []
    for epoch in range(6):
        scheduler.step(1.0 - 0.05 * epoch * (epoch < 2))
        rates.append(opt.param_groups[0]["lr"])
    assert theirs.index(0.5) + 1 == rates.index(0.5)


def test_every_declared_difference_is_checked_and_no_other() -> None:
    assert checks_of("activation", "initializer", "scheduler", "model", "dataset") == declared_of(
        "activation", "initializer", "scheduler", "model", "dataset"
    )


@pytest.mark.parametrize(
    "key", checks_of("activation", "initializer", "scheduler", "model", "dataset"), ids="-".join
)
def test_it_is_just_that(key: tuple[str, str, str]) -> None:
    CHECKS[key]()
