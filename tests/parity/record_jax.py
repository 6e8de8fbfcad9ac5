"""Writes jax_values.json: what JAX and optax compute, for test_jax.py.

They are too heavy to install for the tests. To record anew, in an environment of its own:

    pip install jax optax && python tests/parity/record_jax.py
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)
X = np.random.default_rng(0).normal(size=(6, 8)) * 2
GRADS = np.random.default_rng(1).normal(size=(6, 5))
START = np.random.default_rng(2).normal(size=5)
# For those that treat a matrix as one.
MATRIX_GRADS = np.random.default_rng(3).normal(size=(6, 4, 3))
MATRIX_START = np.random.default_rng(4).normal(size=(4, 3))
# For those whose rate follows from the loss: low enough to cut it in some steps.
SEEN_LOSSES = np.array([0.9, 0.04, 0.6, 0.01, 0.3, 0.02])
# Of a quadratic, for those that measure it; sophia is given its diagonal.
CURVATURE = np.array([0.1, 0.5, 1.0, 2.0, 8.0])

ACTIVATIONS: dict[str, dict[str, Any]] = {
    "celu": {}, "elu": {}, "gelu": {}, "glu": {}, "hard_sigmoid": {}, "hard_silu": {}, "hard_tanh": {},
    "leaky_relu": {}, "log_sigmoid": {}, "log_softmax": {}, "mish": {}, "relu": {}, "relu6": {}, "selu": {},
    "sigmoid": {}, "silu": {}, "soft_sign": {}, "softmax": {}, "softplus": {}, "sparse_plus": {},
    "sparse_sigmoid": {}, "squareplus": {}, "tanh": {},
}  # fmt: skip


def activations() -> dict[str, Any]:
    recorded = {}
    for name, params in ACTIVATIONS.items():
        function = getattr(jax.nn, name)
        weights = jnp.arange(1.0, function(X, **params).shape[-1] + 1)

        def total(x: Any, function: Any = function, params: Any = params, weights: Any = weights) -> Any:
            return (function(x, **params) * weights).sum()

        recorded[name] = {"y": function(X, **params), "gradient": jax.grad(total)(X)}
    return recorded


SHAPES = {"matrix": (400, 300), "kernel": (5, 3, 80, 120)}


def initializers() -> dict[str, Any]:
    """Mean, deviation and reach of a matrix (in, out) and a kernel (height, width, in, out)."""
    make = jax.nn.initializers
    made = {
        name: getattr(make, name)()
        for name in (
            "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform",
            "normal", "uniform", "truncated_normal", "delta_orthogonal", "orthogonal",
        )
    }  # fmt: skip
    made |= {"ones": make.ones, "zeros": make.zeros, "constant": make.constant(0.3)}
    made |= {
        f"variance_scaling {mode} {distribution}": make.variance_scaling(1.5, mode, distribution)
        for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
        for distribution in ("normal", "truncated_normal", "uniform")
    }
    recorded: dict[str, Any] = {}
    for name, initializer in made.items():
        recorded[name] = {}
        for kind, shape in SHAPES.items():
            if name == "delta_orthogonal" and kind == "matrix":
                continue  # JAX has it for kernels only
            values = initializer(jax.random.key(0), shape, jnp.float64)
            recorded[name][kind] = {
                "mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()
            }  # fmt: skip
    return recorded


def losses() -> dict[str, Any]:
    """Each value, and the gradient of their sum weighted by 1, 2, ..."""
    y, indices = X[::-1], np.array([0, 3, 7, 2, 2, 5])
    labels = (y > 0).astype(float)
    target = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    one_hot = jax.nn.one_hot(indices, 8)
    masks = np.stack([labels[:3], 1 - labels[:3]], -1)
    o = optax.losses
    functions = {
        "squared_error": lambda x: o.squared_error(x, y),
        "l2_loss": lambda x: o.l2_loss(x, y),
        "huber_loss": lambda x: o.huber_loss(x, y, delta=0.7),
        "log_cosh": lambda x: o.log_cosh(x, y),
        "cosine_distance": lambda x: o.cosine_distance(x, y),
        "sigmoid_binary_cross_entropy": lambda x: o.sigmoid_binary_cross_entropy(x, labels),
        "sigmoid_focal_loss": lambda x: o.sigmoid_focal_loss(x, labels, alpha=0.3, gamma=1.5),
        "softmax_cross_entropy_with_integer_labels": lambda x: o.softmax_cross_entropy_with_integer_labels(
            x, indices
        ),
        "softmax_cross_entropy": lambda x: o.softmax_cross_entropy(x, target),
        "safe_softmax_cross_entropy": lambda x: o.safe_softmax_cross_entropy(x, target),
        "poly_loss_cross_entropy": lambda x: o.poly_loss_cross_entropy(x, one_hot, epsilon=1.5),
        "kl_divergence": lambda x: o.kl_divergence(jax.nn.log_softmax(x), target),
        "kl_divergence_with_log_targets": lambda x: o.kl_divergence_with_log_targets(
            jax.nn.log_softmax(x), np.log(target)
        ),
        "generalized_kl_divergence": lambda x: o.generalized_kl_divergence(jax.nn.log_softmax(x), target),
        "hinge_loss": lambda x: o.hinge_loss(x, 2 * labels - 1),
        "perceptron_loss": lambda x: o.perceptron_loss(x, 2 * labels - 1),
        "sparsemax_loss": lambda x: o.sparsemax_loss(x, labels.astype(int)),
        "multiclass_hinge_loss": lambda x: o.multiclass_hinge_loss(x, indices),
        "multiclass_perceptron_loss": lambda x: o.multiclass_perceptron_loss(x, indices),
        "multiclass_sparsemax_loss": lambda x: o.multiclass_sparsemax_loss(x, indices),
        "ranking_softmax_loss": lambda x: o.ranking_softmax_loss(x, labels, reduce_fn=None),
        "dice_loss": lambda x: o.dice_loss(x.reshape(2, 12, 2), masks.reshape(2, 12, 2), reduction="none"),
        "binary_dice_loss": lambda x: o.binary_dice_loss(x[..., None], labels[..., None]),
        "multiclass_generalized_dice_loss": lambda x: o.multiclass_generalized_dice_loss(
            x.reshape(2, 12, 2), masks.reshape(2, 12, 2)
        ),
        "triplet_margin_loss": lambda x: o.triplet_margin_loss(x[:2], x[2:4], x[4:], margin=3.0),
        "ntxent": lambda x: o.ntxent(x, np.array([0, 0, 1, 1, 1, 2]), temperature=0.5),
        "ctc_loss": lambda x: o.ctc_loss(
            x.reshape(2, 6, 4), np.zeros((2, 6)), np.array([[1, 3, 3], [2, 1, 0]]), np.array([[0, 0, 0], [0, 0, 1]])
        ),
    }  # fmt: skip

    def total(x: Any, function: Any) -> Any:
        values = function(x).ravel()
        return (values * jnp.arange(1.0, values.size + 1)).sum()

    return {
        name: {"y": function(X), "gradient": jax.grad(total)(jnp.asarray(X), function)}
        for name, function in functions.items()
    }


def paths() -> dict[str, Any]:
    """Six steps on given gradients."""
    c = optax.contrib
    optimizers = {
        "sgd": optax.sgd(0.05, momentum=0.8, nesterov=True),
        "adam": optax.adam(0.05),
        "adamw": optax.adamw(0.05, weight_decay=0.1),
        "adamax": optax.adamax(0.05, eps=1e-30),
        "amsgrad": optax.amsgrad(0.05),
        "signum": optax.signum(0.05, beta=0.8),
        "nadam": optax.nadam(0.05),
        "radam": optax.radam(0.05, b2=0.9),
        "rmsprop": optax.rmsprop(0.02, decay=0.8, eps=1e-3, eps_in_sqrt=False),
        "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.3, eps=1e-30),
        "adadelta": optax.adadelta(0.5, rho=0.8, eps=1e-3),
        "lion": optax.lion(0.05, b1=0.8, b2=0.9, weight_decay=0.0),
        "lamb": optax.lamb(0.05, weight_decay=0.1),
        "adabelief": optax.adabelief(0.05, eps=1e-16, eps_root=1e-16),
        "yogi": optax.yogi(0.05),
        "adan": optax.adan(0.05, eps=1e-8, eps_root=0.0),
        "rprop": optax.rprop(0.05),
        "sign_sgd": optax.sign_sgd(0.05),
        "optimistic_gradient_descent": optax.optimistic_gradient_descent(0.05),
        "optimistic_adam": optax.optimistic_adam_v2(0.05, nesterov=False),
        "acprop": c.acprop(0.05),
        "ademamix": c.ademamix(0.05, b3=0.99),
        "dog": c.dog(),
        "dowg": c.dowg(),
        "cocob": c.cocob(),
        "fromage": optax.fromage(0.05),
        "madgrad": c.madgrad(0.05),
        "novograd": optax.novograd(0.05),
        "sm3": optax.sm3(0.05),
    }
    optimizers |= {
        "adamaxw": optax.adamaxw(0.05, eps=1e-30, weight_decay=0.1),
        "nadamw": optax.nadamw(0.05, weight_decay=0.1),
        "noisy_sgd": optax.noisy_sgd(0.05, eta=0.0, key=0),
        "polyak_sgd": optax.polyak_sgd(0.05),
        "momo": c.momo(0.05),
        "momo_adam": c.momo_adam(0.05),
        "adopt": c.adopt(0.05),
        "simplified_ademamix": c.simplified_ademamix(0.005, alpha=2.0, weight_decay=0.1),
        "schedule_free_sgd": c.schedule_free_sgd(0.05, weight_decay=0.1),
        "schedule_free_adamw": c.schedule_free_adamw(0.05, weight_decay=0.1),
        "sophia": c.sophia(0.05, b1=0.96, eps=1e-12, weight_decay=0.0, hessian_diagonal_fn=_given(CURVATURE)),
        "adafactor": optax.adafactor(0.05),
        "lars": optax.lars(0.05, weight_decay=0.1),
    }
    return {name: path(optimizer, START, GRADS) for name, optimizer in optimizers.items()}


def matrix_paths() -> dict[str, Any]:
    """The same of a matrix."""
    optimizers = {
        "adafactor": optax.adafactor(0.05, min_dim_size_to_factor=2),
        "lars": optax.lars(0.05),
        "lars with decay": optax.lars(0.05, weight_decay=0.1),
        "muon": optax.contrib.muon(0.05, weight_decay=0.1, nesterov=False, consistent_rms=0.2),
        "muon with nesterov": optax.contrib.muon(0.05, consistent_rms=0.2),
    }
    return {name: path(optimizer, MATRIX_START, MATRIX_GRADS) for name, optimizer in optimizers.items()}


def path(optimizer: Any, start: Any, grads: Any) -> Any:
    optimizer = optax.with_extra_args_support(optimizer)
    theta = jnp.asarray(start)
    state, passed = optimizer.init(theta), []
    for grad, loss in zip(grads, SEEN_LOSSES, strict=True):
        update, state = optimizer.update(jnp.asarray(grad), state, theta, value=loss)
        theta = optax.apply_updates(theta, update)
        passed.append(theta)
    return jnp.stack(passed)


def descents() -> dict[str, Any]:
    """Twelve steps down the quadratic, in which the rates that are found grow."""
    optimizers = {
        "lbfgs": optax.lbfgs(1.0, linesearch=None),
        "prodigy": optax.contrib.prodigy(1.0, estim_lr0=1e-2, weight_decay=0.1),
        "dadapt_adamw": optax.contrib.dadapt_adamw(1.0, estim_lr0=1e-2, weight_decay=0.1),
        "dog": optax.contrib.dog(),
        "dowg": optax.contrib.dowg(),
    }
    recorded = {}
    for name, optimizer in optimizers.items():
        theta = jnp.asarray(START)
        state, passed = optimizer.init(theta), []
        for _ in range(12):
            update, state = optimizer.update(CURVATURE * theta, state, theta)
            theta = optax.apply_updates(theta, update)
            passed.append(theta)
        recorded[name] = jnp.stack(passed)
    return recorded | {"sam": sharpness_aware()}


def sharpness_aware() -> Any:
    """Momentum steps by the gradient at the worst point near by, down the same quadratic."""
    optimizer = optax.contrib.sam(
        optax.sgd(0.05, momentum=0.8),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        opaque_mode=True,
    )
    theta = jnp.asarray(START)
    state, passed = optimizer.init(theta), []
    for _ in range(12):
        update, state = optimizer.update(
            CURVATURE * theta, state, theta, grad_fn=lambda params, _: CURVATURE * params
        )
        theta = optax.apply_updates(theta, update)
        passed.append(theta)
    return jnp.stack(passed)


def _given(diagonal: Any) -> Any:
    """Tells sophia this diagonal of the Hessian."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:  # noqa: ARG001
        return jnp.asarray(diagonal), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def schedules() -> dict[str, Any]:
    made = {
        "cosine": optax.cosine_decay_schedule(1.0, 20, alpha=0.1),
        "warmup_cosine": optax.warmup_cosine_decay_schedule(0.1, 1.0, 5, 20, end_value=0.2),
        "polynomial": optax.polynomial_schedule(1.0, 0.1, 2.0, 20),
        "exponential": optax.exponential_decay(1.0, 1, 0.9),
        "one_cycle": optax.cosine_onecycle_schedule(19, 1.0, pct_start=0.3),
        "linear_one_cycle": optax.linear_onecycle_schedule(20, 25.0),
        "one_cycle of 21 steps": optax.cosine_onecycle_schedule(21, 1.0, pct_start=0.3),
        "piecewise": optax.piecewise_interpolate_schedule("linear", 1.0, {5: 0.5, 12: 0.2}),
        "warmup_exponential": optax.warmup_exponential_decay_schedule(0.1, 1.0, 5, 15, 0.01),
        "linear_warmup": optax.linear_schedule(0.1, 1.0, 5),
        "constant": optax.constant_schedule(1.0),
        "warmup_constant": optax.warmup_constant_schedule(0.1, 1.0, 5),
        "multistep": optax.piecewise_constant_schedule(1.0, {5: 0.1, 12: 0.1}),
        "cosine_restarts": optax.sgdr_schedule(
            [
                {"init_value": 1.0, "peak_value": 1.0, "decay_steps": n, "warmup_steps": 0, "end_value": 0.1}
                for n in (5, 15)
            ]
        ),
    }
    return {name: jnp.array([schedule(t) for t in range(20)]) for name, schedule in made.items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return np.round(np.asarray(value), 12).tolist()


def public(module: Any) -> list[str]:
    return sorted(name for name in dir(module) if name[0] != "_" and callable(getattr(module, name)))


def functions_of(module: Any, origin: str) -> list[str]:
    """The public functions of a module that were written there; some are partials."""
    found = ((name, getattr(module, name)) for name in public(module))
    written = ((name, getattr(value, "func", value)) for name, value in found)
    return [
        name for name, value in written if inspect.isfunction(value) and value.__module__.startswith(origin)
    ]


if __name__ == "__main__":
    values = {
        "origin": f"jax {jax.__version__}, optax {optax.__version__}, by tests/parity/record_jax.py, in float64",
        "x": plain(X),
        "grads": plain(GRADS),
        "start": plain(START),
        "matrix_grads": plain(MATRIX_GRADS),
        "matrix_start": plain(MATRIX_START),
        "seen_losses": plain(SEEN_LOSSES),
        "curvature": plain(CURVATURE),
        "activations": plain(activations()),
        "initializers": plain(initializers()),
        "losses": plain(losses()),
        "optimizers": plain(paths()),
        "descents": plain(descents()),
        "matrix_optimizers": plain(matrix_paths()),
        "schedules": plain(schedules()),
        "defaults": {
            f"{make.__name__}.weight_decay": inspect.signature(make).parameters["weight_decay"].default
            for make in (optax.adamw, optax.adamaxw)
        },
        "names": {
            "activations": public(jax.nn),
            "initializers": public(jax.nn.initializers),
            "losses": public(optax.losses),
            "optimizers": functions_of(optax, "optax._src.alias")
            + functions_of(optax.contrib, "optax.contrib"),
            "schedules": functions_of(optax.schedules, "optax"),
        },
    }
    Path(__file__).with_name("jax_values.json").write_text(json.dumps(values, indent=None) + "\n")
