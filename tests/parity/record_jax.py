"""Writes jax_values.json: what JAX and optax compute, for test_jax.py.

They are too heavy to install for the tests. To record anew, in an environment of its own:

    pip install jax optax && python tests/parity/record_jax.py
"""

from __future__ import annotations

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


def initializers() -> dict[str, Any]:
    """Deviation and largest size of a (400, 300) matrix: (in, out)."""
    made = {
        name: getattr(jax.nn.initializers, name)()
        for name in (
            "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform",
            "normal", "uniform", "orthogonal", "truncated_normal",
        )
    }  # fmt: skip
    made["variance_scaling"] = jax.nn.initializers.variance_scaling(1.5, "fan_avg", "normal")
    recorded = {}
    for name, initializer in made.items():
        values = initializer(jax.random.key(0), (400, 300), jnp.float64)
        recorded[name] = {"std": values.std(), "max": values.max(), "min": values.min()}
    return recorded


def losses() -> dict[str, Any]:
    y, indices = X[::-1], np.array([0, 3, 7, 2, 2, 5])
    labels = (X[::-1] > 0).astype(float)
    target = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    return {
        "squared_error": optax.squared_error(X, y),
        "l2_loss": optax.l2_loss(X, y),
        "huber_loss": optax.huber_loss(X, y, delta=0.7),
        "log_cosh": optax.losses.log_cosh(X, y),
        "cosine_distance": optax.losses.cosine_distance(X, y),
        "sigmoid_binary_cross_entropy": optax.losses.sigmoid_binary_cross_entropy(X, labels),
        "sigmoid_focal_loss": optax.losses.sigmoid_focal_loss(X, labels, alpha=0.3, gamma=1.5),
        "softmax_cross_entropy_with_integer_labels": optax.softmax_cross_entropy_with_integer_labels(
            X, indices
        ),
        "softmax_cross_entropy": optax.softmax_cross_entropy(X, target),
        "poly_loss_cross_entropy": optax.losses.poly_loss_cross_entropy(
            X, jax.nn.one_hot(indices, 8), epsilon=1.5
        ),
        "kl_divergence": optax.losses.kl_divergence(jax.nn.log_softmax(X), target),
        "generalized_kl_divergence": optax.losses.generalized_kl_divergence(jax.nn.log_softmax(X), target),
        "hinge_loss": optax.losses.hinge_loss(X, 2 * labels - 1),
        "perceptron_loss": optax.losses.perceptron_loss(X, 2 * labels - 1),
        "multiclass_hinge_loss": optax.losses.multiclass_hinge_loss(X, indices),
        "multiclass_perceptron_loss": optax.losses.multiclass_perceptron_loss(X, indices),
        "multiclass_sparsemax_loss": optax.losses.multiclass_sparsemax_loss(X, indices),
        "ranking_softmax_loss": optax.losses.ranking_softmax_loss(X, labels, reduce_fn=None),
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
    }
    recorded = {}
    for name, optimizer in optimizers.items():
        theta = jnp.asarray(START)
        state, path = optimizer.init(theta), []
        for grad in GRADS:
            update, state = optimizer.update(jnp.asarray(grad), state, theta)
            theta = optax.apply_updates(theta, update)
            path.append(theta)
        recorded[name] = jnp.stack(path)
    return recorded


def schedules() -> dict[str, Any]:
    made = {
        "cosine": optax.cosine_decay_schedule(1.0, 20, alpha=0.1),
        "warmup_cosine": optax.warmup_cosine_decay_schedule(0.1, 1.0, 5, 20, end_value=0.2),
        "polynomial": optax.polynomial_schedule(1.0, 0.1, 2.0, 20),
        "exponential": optax.exponential_decay(1.0, 1, 0.9),
        "one_cycle": optax.cosine_onecycle_schedule(21, 1.0, pct_start=0.3),
        "piecewise": optax.piecewise_interpolate_schedule("linear", 1.0, {5: 0.5, 12: 0.2}),
        "warmup_exponential": optax.warmup_exponential_decay_schedule(0.1, 1.0, 5, 15, 0.01),
        "linear_warmup": optax.linear_schedule(0.1, 1.0, 5),
    }
    return {name: jnp.array([schedule(t) for t in range(20)]) for name, schedule in made.items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return np.round(np.asarray(value), 12).tolist()


def public(module: Any) -> list[str]:
    return sorted(name for name in dir(module) if name[0] != "_" and callable(getattr(module, name)))


if __name__ == "__main__":
    values = {
        "origin": f"jax {jax.__version__}, optax {optax.__version__}, by tests/parity/record_jax.py, in float64",
        "x": plain(X),
        "grads": plain(GRADS),
        "start": plain(START),
        "activations": plain(activations()),
        "initializers": plain(initializers()),
        "losses": plain(losses()),
        "optimizers": plain(paths()),
        "schedules": plain(schedules()),
        "names": {"activations": public(jax.nn), "losses": public(optax.losses)},
    }
    Path(__file__).with_name("jax_values.json").write_text(json.dumps(values, indent=None) + "\n")
