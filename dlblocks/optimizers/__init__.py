"""The catalogue of optimisers: one entry a block.

Formulas: theta are the parameters, g the gradient of the loss at theta, t = 1, 2, ... the update; all
operations are elementwise unless the entry says otherwise. `l2` decay adds weight_decay * theta to g
before anything else; `decoupled` decay shrinks theta by lr * weight_decay * theta beside the update.

An elementwise one has a `gradient_degree` k if its steps on c g are c^k times those on g, for any c > 0, up to eps, noise
and first steps: 1 for those of gradient descent, 0 for adaptive ones.
"""

from __future__ import annotations

from typing import Any, Literal

from dlblocks.optimizers import extra, own, own_adam, own_wrappers
from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS, IMPLEMENTATION, MOMENTS, betas, decay, eps, lr
from dlblocks.records import Block, Param

_DECOUPLED = Param(
    "decoupled_weight_decay", False, "bool", "decay beside the update, as in AdamW, not through g"
)
_AMSGRAD = Param(
    "amsgrad", False, "bool", "divide by the largest v so far (Reddi et al. 2018, arXiv:1904.09237)"
)


def _entry(
    name: str,
    target: str,
    *params: Param,
    decay: Literal["l2", "decoupled"] = "l2",
    linear_in_lr: bool = True,
    gradient_degree: int = 0,
    **about: Any,
) -> Block:
    tags = {
        "elementwise": True,
        "gradient_degree": gradient_degree,
        "linear_in_lr": linear_in_lr,
        "closure": False,
        "kind_of_decay": decay,
    }
    return Block(
        kind="optimizer",
        name=name,
        target=target,
        params=(*params, DECAY_NORM_AND_BIAS, IMPLEMENTATION),
        tags=tags,
        **about,
    )


BLOCKS: tuple[Block, ...] = (
    _entry(
        "sgd",
        "torch.optim:SGD",
        lr(0.01, origin=1e-3),
        Param("momentum", 0.0, "float", "share of the last step that is kept", "[0, 1)"),
        Param("dampening", 0.0, "float", "share of g that does not enter the momentum", "[0, 1]"),
        decay(),
        Param("nesterov", False, "bool", "look ahead along the momentum; needs momentum > 0"),
        gradient_degree=1,
        aliases=("gd",),
        summary="(Mini-batch) gradient descent, with momentum if asked; GD is a batch of all instances.",
        formula="b_1 = g, b_t = momentum * b_(t-1) + (1 - dampening) * g; theta -= lr * b_t;"
        " nesterov: theta -= lr * (g + momentum * b_t)",
        source="Robbins & Monro 1951; momentum: Polyak 1964; nesterov: Sutskever et al. 2013 (ICML)",
        differs_from={
            "torch": "lr 0.001 by default",
            "keras": "its momentum holds lr * g, so the two part where a scheduler changes lr",
        },
    ),
    _entry(
        "adam",
        "torch.optim:Adam",
        lr(1e-3),
        MOMENTS,
        eps(1e-8, "added to the root, after the bias correction"),
        decay(),
        _AMSGRAD,
        summary="Steps of about lr, whatever the scale of the gradient: momentum over root mean square.",
        formula="m_t = beta_1 m_(t-1) + (1 - beta_1) g; v_t = beta_2 v_(t-1) + (1 - beta_2) g^2;"
        " theta -= lr * (m_t / (1 - beta_1^t)) / (sqrt(v_t / (1 - beta_2^t)) + eps)",
        source="Kingma & Ba 2014, arXiv:1412.6980",
        note="weight decay is l2, through the averages: adamw has the decoupled one",
        differs_from={
            "keras": "eps, 1e-7 by default, is added before the bias correction",
            "optax": "amsgrad takes the largest v after the bias correction, not before",
        },
    ),
    _entry(
        "adamw",
        "torch.optim:AdamW",
        lr(1e-3),
        MOMENTS,
        eps(1e-8, "added to the root, after the bias correction"),
        decay(0.01),
        _AMSGRAD,
        decay="decoupled",
        summary="Adam whose weight decay does not pass through the averages.",
        formula="theta -= lr * weight_decay * theta; then as adam",
        source="Loshchilov & Hutter 2017, arXiv:1711.05101",
        note="weight_decay is multiplied by lr",
        differs_from={
            "keras": "weight_decay 0.004 by default; eps, 1e-7 by default, is added before the bias correction",
            "optax": "weight_decay 0.0001 by default",
        },
    ),
    _entry(
        "rmsprop",
        "torch.optim:RMSprop",
        lr(0.01),
        Param("alpha", 0.99, "float", "decay rate of the average of g^2", "[0, 1)"),
        eps(1e-8, "added to the root"),
        decay(),
        Param("momentum", 0.0, "float", "share of the last step that is kept", "[0, 1)"),
        Param("centered", False, "bool", "subtract the square of the average of g: the variance"),
        summary="The gradient over its root mean square.",
        formula="v_t = alpha v_(t-1) + (1 - alpha) g^2; centered: a_t = alpha a_(t-1) + (1 - alpha) g,"
        " s = v_t - a_t^2, else s = v_t; b_t = momentum * b_(t-1) + g / (sqrt(s) + eps); theta -= lr * b_t",
        source="Tieleman & Hinton 2012 (Coursera lecture 6.5); centered: Graves 2013, arXiv:1308.0850",
        differs_from={"keras": "eps inside the root; alpha 0.9, lr 0.001 and eps 1e-7 by default"},
    ),
    _entry(
        "adagrad",
        "torch.optim:Adagrad",
        lr(0.01),
        Param("lr_decay", 0.0, "float", "lr falls as lr / (1 + (t - 1) * lr_decay)", "[0, inf)"),
        decay(),
        Param("initial_accumulator_value", 0.0, "float", "G_0", "[0, inf)"),
        eps(1e-10, "added to the root"),
        summary="The gradient over the root of the sum of all its squares: rarely moved weights move more.",
        formula="G_t = G_(t-1) + g^2; theta -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(G_t) + eps)",
        source="Duchi et al. 2011 (JMLR 12)",
        differs_from={"keras": "eps inside the root; lr 0.001, G_0 = 0.1 and eps 1e-7 by default"},
    ),
    _entry(
        "adadelta",
        "torch.optim:Adadelta",
        lr(1.0),
        Param("rho", 0.9, "float", "decay rate of both averages", "[0, 1)"),
        eps(1e-6, "added inside both roots; sets the size of the first steps"),
        decay(),
        summary="The gradient scaled by the ratio of root mean squares of past steps and gradients.",
        formula="v_t = rho v_(t-1) + (1 - rho) g^2; d_t = sqrt(u_(t-1) + eps) / sqrt(v_t + eps) * g;"
        " u_t = rho u_(t-1) + (1 - rho) d_t^2; theta -= lr * d_t",
        source="Zeiler 2012, arXiv:1212.5701",
        note="the paper has no lr: 1 is the paper's",
        differs_from={"keras": "lr 0.001, rho 0.95 and eps 1e-7 by default"},
    ),
    _entry(
        "nadam",
        "torch.optim:NAdam",
        lr(2e-3),
        MOMENTS,
        eps(1e-8, "added to the root, after the bias correction"),
        decay(),
        Param("momentum_decay", 0.004, "float", "how fast the warm-up of the momentum ends", "[0, inf)"),
        _DECOUPLED,
        summary="Adam with Nesterov's momentum.",
        formula="m_t, v_t as adam; mu_t = beta_1 (1 - 0.96^(t * momentum_decay) / 2); P_t = mu_1 ... mu_t;"
        " theta -= lr * ((1 - mu_t) g / (1 - P_t) + mu_(t+1) m_t / (1 - P_(t+1)))"
        " / (sqrt(v_t / (1 - beta_2^t)) + eps)",
        source="Dozat 2016 (ICLR workshop, openreview OM0jvwB8jIp57ZJjtNEZ)",
        note="decay is l2 unless decoupled_weight_decay",
        differs_from={
            "keras": "momentum_decay is 1; lr 0.001 and eps 1e-7 by default",
            "optax": "mu stays beta_1, so the first steps differ",
        },
    ),
    _entry(
        "radam",
        "torch.optim:RAdam",
        lr(1e-3),
        MOMENTS,
        eps(1e-8, "added to the root, before the bias correction"),
        decay(),
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
        lr(2e-3),
        betas("decay rates of the average of g and of the largest |g|"),
        eps(1e-8, "added to |g| inside the maximum"),
        decay(),
        summary="Adam with the largest gradient in place of the root mean square.",
        formula="m_t as adam; u_t = max(beta_2 u_(t-1), |g| + eps); theta -= lr / (1 - beta_1^t) * m_t / u_t",
        source="Kingma & Ba 2014, arXiv:1412.6980",
        differs_from={"keras": "eps is added to u_t; lr 0.001 and eps 1e-7 by default"},
    ),
    Block(
        kind="optimizer",
        name="lbfgs",
        target="torch.optim:LBFGS",
        params=(
            lr(1.0),
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
        note="no weight decay, all parameters in one group",
        differs_from={
            "torch": "searches no line by default",
            "optax": "the first rate is over |g|_2, not |g|_1; another search of the line",
        },
        tags={"elementwise": False, "linear_in_lr": False, "closure": True},
    ),
    _entry(
        "asgd",
        "torch.optim:ASGD",
        lr(0.01),
        Param("lambd", 1e-4, "float", "decay of theta, and how fast lr falls", "[0, inf)"),
        Param("alpha", 0.75, "float", "power of the fall of lr", "[0, inf)"),
        Param("t0", 1e6, "float", "step at which the averaging begins", "[0, inf)"),
        decay(),
        linear_in_lr=False,
        gradient_degree=1,
        aliases=("averaged_sgd",),
        summary="SGD with a falling rate, which keeps the average of theta in its state.",
        formula="theta = (1 - lambd * eta_t) theta - eta_t g; eta_t = lr / (1 + lambd * lr * (t - 1))^alpha;"
        " ax = mean of theta from t0 on",
        source="Polyak & Juditsky 1992 (SIAM J. Control Optim. 30); rate: Xu 2011, arXiv:1107.2490",
        note='the model trains and is judged at theta; the average is `optimizer.state[p]["ax"]`',
    ),
    Block(
        kind="optimizer",
        name="rprop",
        target="torch.optim:Rprop",
        params=(
            lr(0.01),
            Param(
                "etas",
                (0.5, 1.2),
                "floats",
                "factors of the step after a turn and without",
                "(0, inf)",
                size=2,
            ),
            Param("step_sizes", (1e-6, 50.0), "floats", "the least and the largest step", "[0, inf)", size=2),
            IMPLEMENTATION,
        ),
        summary="Steps that grow while the gradient keeps its sign; for the whole data set as one batch.",
        formula="s = s * eta_+ if g g_(t-1) > 0, s * eta_- and g = 0 if < 0, else s; theta -= s * sign(g); s_0 = lr",
        source="Riedmiller & Braun 1993 (IEEE ICNN)",
        differs_from={
            "optax": "each step is taken one gradient later, and not at all if the gradient has turned by then"
        },
        tags={"elementwise": True, "linear_in_lr": False, "closure": False},
    ),
    Block(
        kind="optimizer",
        name="adafactor",
        target="torch.optim:Adafactor",
        params=(
            lr(0.01),
            Param("beta2_decay", -0.8, "float", "power of t in 1 - beta_2", "(-inf, 0]"),
            Param("d", 1.0, "float", "largest root mean square of the update", "[1, inf)"),
            decay(),
            DECAY_NORM_AND_BIAS,
        ),
        summary="Adam without momentum whose second moment of a matrix is one number for each row and column.",
        formula="v = rows x columns / mean(rows), averages of g^2 with beta_2 = 1 - t^beta2_decay; u = g / sqrt(v);"
        " theta -= min(lr, 1 / sqrt(t)) * max(1e-3, rms(theta)) * u / max(1, rms(u) / d)",
        source="Shazeer & Stern 2018, arXiv:1804.04235",
        tags={"elementwise": False, "linear_in_lr": False, "closure": False, "kind_of_decay": "decoupled"},
    ),
    Block(
        kind="optimizer",
        name="sparse_adam",
        target="torch.optim:SparseAdam",
        params=(lr(1e-3), MOMENTS, eps(1e-8, "added to the root, before the bias correction")),
        summary="Adam that moves only the rows that have a gradient, for sparse embeddings.",
        formula="as adam, on the rows of a sparse g",
        source="Kingma & Ba 2014, arXiv:1412.6980",
        tags={
            "elementwise": True,
            "gradient_degree": 0,
            "linear_in_lr": True,
            "closure": False,
            "sparse": True,
        },
    ),
    *own.BLOCKS,
    *own_adam.BLOCKS,
    *own_wrappers.BLOCKS,
    *extra.BLOCKS,
)
