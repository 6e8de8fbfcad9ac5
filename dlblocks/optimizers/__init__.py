"""The catalogue of optimisers: one entry a block.

Formulas: theta are the parameters, g the gradient of the loss at theta, t = 1, 2, ... the update; all
operations are elementwise unless the entry says otherwise. `l2` decay adds weight_decay * theta to g
before anything else; `decoupled` decay shrinks theta by lr * weight_decay * theta beside the update.
"""

from __future__ import annotations

from typing import Any, Literal

from dlblocks.records import SAME, Block, Param

# These two are dlblocks' own: `build.py` acts on them, torch never sees the first.
DECAY_NORM_AND_BIAS = Param(
    "decay_norm_and_bias",
    False,
    "bool",
    "whether weight decay also reaches biases, norm scales and other 1-D parameters (PReLU slopes)",
)
IMPLEMENTATION = Param(
    "implementation",
    "auto",
    "str",
    "how torch computes the update: in one kernel, tensor lists, or a loop; same result to rounding",
    choices=("auto", "fused", "foreach", "single"),
)


def _lr(default: float, origin: Any = SAME) -> Param:
    return Param("lr", default, "float", "learning rate", "(0, inf)", origin=origin)


def _eps(default: float, doc: str) -> Param:
    return Param("eps", default, "float", doc, "(0, inf)")


def _betas(doc: str) -> Param:
    return Param("betas", (0.9, 0.999), "floats", doc, "[0, 1)", size=2)


def _decay(default: float = 0.0) -> Param:
    return Param("weight_decay", default, "float", "strength of the decay of the weights", "[0, inf)")


_MOMENTS = _betas("decay rates of the averages of g and of g^2")
_DECOUPLED = Param(
    "decoupled_weight_decay", False, "bool", "decay beside the update, as in AdamW, not through g"
)
_AMSGRAD = Param(
    "amsgrad", False, "bool", "divide by the largest v so far (Reddi et al. 2018, arXiv:1904.09237)"
)


def _entry(
    name: str, target: str, *params: Param, decay: Literal["l2", "decoupled"] = "l2", **about: Any
) -> Block:
    return Block(
        kind="optimizer",
        name=name,
        target=target,
        params=(*params, DECAY_NORM_AND_BIAS, IMPLEMENTATION),
        tags={"elementwise": True, "linear_in_lr": True, "closure": False, "kind_of_decay": decay},
        **about,
    )


BLOCKS: tuple[Block, ...] = (
    _entry(
        "sgd",
        "torch.optim:SGD",
        _lr(0.01, origin=1e-3),
        Param("momentum", 0.0, "float", "share of the last step that is kept", "[0, 1)"),
        Param("dampening", 0.0, "float", "share of g that does not enter the momentum", "[0, 1]"),
        _decay(),
        Param("nesterov", False, "bool", "look ahead along the momentum; needs momentum > 0"),
        aliases=("gd",),
        summary="(Mini-batch) gradient descent, with momentum if asked; GD is a batch of all instances.",
        formula="b_1 = g, b_t = momentum * b_(t-1) + (1 - dampening) * g; theta -= lr * b_t;"
        " nesterov: theta -= lr * (g + momentum * b_t)",
        source="Robbins & Monro 1951; momentum: Polyak 1964; nesterov: Sutskever et al. 2013 (ICML)",
        note="lr 0.01 as in Keras, 0.001 in torch; the momentum holds gradients, Keras's holds"
        " lr * g, so the two part where a scheduler changes lr",
    ),
    _entry(
        "adam",
        "torch.optim:Adam",
        _lr(1e-3),
        _MOMENTS,
        _eps(1e-8, "added to the root, after the bias correction"),
        _decay(),
        _AMSGRAD,
        summary="Steps of about lr, whatever the scale of the gradient: momentum over root mean square.",
        formula="m_t = beta_1 m_(t-1) + (1 - beta_1) g; v_t = beta_2 v_(t-1) + (1 - beta_2) g^2;"
        " theta -= lr * (m_t / (1 - beta_1^t)) / (sqrt(v_t / (1 - beta_2^t)) + eps)",
        source="Kingma & Ba 2014, arXiv:1412.6980",
        note="Keras adds its eps (1e-7) before the bias correction; weight decay here is l2, through the"
        " averages: adamw has the decoupled one",
    ),
    _entry(
        "adamw",
        "torch.optim:AdamW",
        _lr(1e-3),
        _MOMENTS,
        _eps(1e-8, "added to the root, after the bias correction"),
        _decay(0.01),
        _AMSGRAD,
        decay="decoupled",
        summary="Adam whose weight decay does not pass through the averages.",
        formula="theta -= lr * weight_decay * theta; then as adam",
        source="Loshchilov & Hutter 2017, arXiv:1711.05101",
        note="weight_decay 0.01 as in torch; Keras 0.004, optax 0.0001; all multiply it by lr",
    ),
    _entry(
        "rmsprop",
        "torch.optim:RMSprop",
        _lr(0.01),
        Param("alpha", 0.99, "float", "decay rate of the average of g^2", "[0, 1)"),
        _eps(1e-8, "added to the root"),
        _decay(),
        Param("momentum", 0.0, "float", "share of the last step that is kept", "[0, 1)"),
        Param("centered", False, "bool", "subtract the square of the average of g: the variance"),
        summary="The gradient over its root mean square.",
        formula="v_t = alpha v_(t-1) + (1 - alpha) g^2; centered: a_t = alpha a_(t-1) + (1 - alpha) g,"
        " s = v_t - a_t^2, else s = v_t; b_t = momentum * b_(t-1) + g / (sqrt(s) + eps); theta -= lr * b_t",
        source="Tieleman & Hinton 2012 (Coursera lecture 6.5); centered: Graves 2013, arXiv:1308.0850",
        note="Keras: alpha 0.9, lr 0.001, eps 1e-7 inside the root",
    ),
    _entry(
        "adagrad",
        "torch.optim:Adagrad",
        _lr(0.01),
        Param("lr_decay", 0.0, "float", "lr falls as lr / (1 + (t - 1) * lr_decay)", "[0, inf)"),
        _decay(),
        Param("initial_accumulator_value", 0.0, "float", "G_0", "[0, inf)"),
        _eps(1e-10, "added to the root"),
        summary="The gradient over the root of the sum of all its squares: rarely moved weights move more.",
        formula="G_t = G_(t-1) + g^2; theta -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(G_t) + eps)",
        source="Duchi et al. 2011 (JMLR 12)",
        note="Keras: lr 0.001, G_0 = 0.1, eps 1e-7 inside the root",
    ),
    _entry(
        "adadelta",
        "torch.optim:Adadelta",
        _lr(1.0),
        Param("rho", 0.9, "float", "decay rate of both averages", "[0, 1)"),
        _eps(1e-6, "added inside both roots; sets the size of the first steps"),
        _decay(),
        summary="The gradient scaled by the ratio of root mean squares of past steps and gradients.",
        formula="v_t = rho v_(t-1) + (1 - rho) g^2; d_t = sqrt(u_(t-1) + eps) / sqrt(v_t + eps) * g;"
        " u_t = rho u_(t-1) + (1 - rho) d_t^2; theta -= lr * d_t",
        source="Zeiler 2012, arXiv:1212.5701",
        note="the paper has no lr: 1 is the paper's; Keras's default 0.001 is 1000 times slower",
    ),
    _entry(
        "nadam",
        "torch.optim:NAdam",
        _lr(2e-3),
        _MOMENTS,
        _eps(1e-8, "added to the root, after the bias correction"),
        _decay(),
        Param("momentum_decay", 0.004, "float", "how fast the warm-up of the momentum ends", "[0, inf)"),
        _DECOUPLED,
        summary="Adam with Nesterov's momentum.",
        formula="m_t, v_t as adam; mu_t = beta_1 (1 - 0.96^(t * momentum_decay) / 2); P_t = mu_1 ... mu_t;"
        " theta -= lr * ((1 - mu_t) g / (1 - P_t) + mu_(t+1) m_t / (1 - P_(t+1)))"
        " / (sqrt(v_t / (1 - beta_2^t)) + eps)",
        source="Dozat 2016 (ICLR workshop, openreview OM0jvwB8jIp57ZJjtNEZ)",
        note="Keras's warm-up of mu is 250 times faster (momentum_decay 1), optax has none, so the first"
        " steps differ; decay is l2 unless decoupled_weight_decay",
    ),
    _entry(
        "radam",
        "torch.optim:RAdam",
        _lr(1e-3),
        _MOMENTS,
        _eps(1e-8, "added to the root, before the bias correction"),
        _decay(),
        _DECOUPLED,
        summary="Adam that takes plain momentum steps until the variance of its second moment is known.",
        formula="m_t, v_t as adam; R = 2 / (1 - beta_2) - 1; r_t = R - 2 t beta_2^t / (1 - beta_2^t);"
        " m = m_t / (1 - beta_1^t); r_t > 5: theta -= lr * m * sqrt((r_t - 4)(r_t - 2) R / ((R - 4)(R - 2) r_t))"
        " * sqrt(1 - beta_2^t) / (sqrt(v_t) + eps); else theta -= lr * m",
        source="Liu et al. 2019, arXiv:1908.03265",
        note="the threshold 5 is the authors' code's, the paper's is 4; decay is l2 unless"
        " decoupled_weight_decay",
    ),
    _entry(
        "adamax",
        "torch.optim:Adamax",
        _lr(2e-3),
        _betas("decay rates of the average of g and of the largest |g|"),
        _eps(1e-8, "added to |g| inside the maximum"),
        _decay(),
        summary="Adam with the largest gradient in place of the root mean square.",
        formula="m_t as adam; u_t = max(beta_2 u_(t-1), |g| + eps); theta -= lr / (1 - beta_1^t) * m_t / u_t",
        source="Kingma & Ba 2014, arXiv:1412.6980",
        note="Keras: lr 0.001, eps 1e-7 added to u_t",
    ),
    Block(
        kind="optimizer",
        name="lbfgs",
        target="torch.optim:LBFGS",
        params=(
            _lr(1.0),
            Param("max_iter", 20, "int", "iterations in each step, which is one batch", "[1, inf)"),
            Param(
                "max_eval", None, "int", "loss evaluations in each step; null is max_iter * 1.25", "[1, inf)"
            ),
            Param("tolerance_grad", 1e-7, "float", "a step ends when all |g| are below it", "[0, inf)"),
            Param(
                "tolerance_change", 1e-9, "float", "a step ends when loss or theta changes less", "[0, inf)"
            ),
            Param("history_size", 100, "int", "pairs (s_i, y_i) remembered", "[1, inf)"),
            Param(
                "line_search_fn",
                "strong_wolfe",
                "str",
                "search for the step length; null takes lr itself",
                choices=("strong_wolfe",),
                optional=True,
                origin=None,
            ),
        ),
        summary="Quasi-Newton: curvature from the last gradients. For small data, with the whole set as one batch.",
        formula="s_i = theta_(i+1) - theta_i, y_i = g_(i+1) - g_i; theta -= a_t H_t g, H_t from the newest"
        " (s_i, y_i) by the two-loop recursion, a_t by the line search from lr (first step: lr / |g|_1)",
        source="Liu & Nocedal 1989 (Mathematical Programming 45)",
        note="torch searches no line by default; scipy's L-BFGS-B remembers 10 pairs; no weight decay, all"
        " parameters in one group",
        tags={"elementwise": False, "linear_in_lr": False, "closure": True},
    ),
)
