"""The optimisers of the package pytorch-optimizer, with that package's own parameters and defaults.

Left out, as of its version 4.1, each with the reason, in `LEFT_OUT`: doubles of what torch has, updates
that are not their paper's, states that cannot be loaded without running code, and what is no optimiser
of a model's parameters by a plain backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS, MOMENTS, decay, lr
from dlblocks.records import Block, Param

PACKAGE = "pytorch-optimizer>=4.1"

# Class of the package -> why it is no block here.
LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("SGD", "Adam", "AdamW", "RMSprop", "NAdam", "LBFGS", "AdaDelta", "AdaMax"), "torch has it"
        ),
        "AdaFactor": "torch has it; this one leaves lr without effect by default",
        "RAdam": "torch has it; this one takes no step before the variance is known",
        "Muon": "torch has it",
        "Lamb": "divides lr by 1 - beta_1^t after the trust ratio has set the length: first step 10 lr |theta|;"
        " dlblocks has its own",
        "ADOPT": "clips its steps by the bound of the step after; dlblocks has its own",
        "SimplifiedAdEMAMix": "its momentum is an average, and its correction of v's start from zero goes"
        " the wrong way; dlblocks has its own",
        "ASGD": "its rate comes from differences of norms, not norms of differences; dlblocks has its own, adgd",
        "AdaGO": "divides by the sum of squared norms instead of its root",
        "Ranger": "its first steps, before the variance is known, go up the gradient",
        "EmoFact": "takes the sign of a matrix's gradient after the division, so that its averages have no effect",
        "DAdaptAdan": "averages fourth powers of the gradient: gradients of ten times the size make steps of a tenth",
        "SCIONLight": "keeps its average in the gradients, which a training loop clears before each backward pass",
        "SRMM": "its first step does not depend on lr or the gradient",
        "A2Grad": "has no effective lr",
        "AliG": "has no lr: the loss sets it",
        "AdaShift": "its state holds a queue, which cannot be loaded without running code",
        "Conda": "its state holds objects, which cannot be loaded without running code",
        "ScalableShampoo": "its state holds objects, which cannot be loaded without running code",
        "Kron": "draws from numpy's global generator, so that no run could be repeated or resumed exactly",
        "LOMO": "steps inside the backward pass",
        "AdaLOMO": "steps inside the backward pass",
        "BSAM": "needs the number of instances and two backward passes a step",
        "Ranger21": "needs the number of steps, and brings a schedule of its own",
        "AdamMini": "needs the names of the parameters of a transformer",
        "MuonClip": "needs the attention's query and key weights",
        "LoRARite": "for pairs of low-rank factors",
        "SaRA": "for fine-tuning: moves only weights near zero",
        **dict.fromkeys(
            ("GaLore", "Fira", "APOLLO"),
            "AdamW unless a group has a rank; then its state holds objects, which cannot be loaded without"
            " running code",
        ),
        "SpectralSphere": "takes matrices only",
        "DistributedMuon": "needs a process group",
        "DeMo": "needs a process group",
        "Magma": "goes around another optimizer by a paper that is too new to tell what lasts of it",
        # These go around another and are not in the package's own list.
        "PCGrad": "needs the losses of several tasks apart, where a training step here has one",
        "SafeFP16Optimizer": "scales the loss, which trainer.precision does",
        "ScheduleFreeWrapper": "schedule_free_sgd, schedule_free_adamw and schedule_free_radam are it",
        "CPUOffloadOptimizer": "another place for the state, not another update",
    }
)

# What a parameter of this name means in every optimiser that has it, unless its entry says otherwise.
_SHARED = {
    param.name: param
    for param in (
        lr(1e-3),
        MOMENTS,
        Param("beta", 0.9, "float", "decay rate of the average of g", "[0, 1)"),
        Param("momentum", 0.9, "float", "share of the last step that is kept", "[0, 1)"),
        Param("dampening", 0.0, "float", "share of g that does not enter the momentum", "[0, 1]"),
        Param("nesterov", False, "bool", "look ahead along the momentum"),
        Param("eps", 1e-8, "float", "added to the denominator", "[0, inf)"),
        Param("eps1", 1e-30, "float", "added to g^2", "[0, inf)"),
        Param("eps2", 1e-3, "float", "added to the denominator", "[0, inf)"),
        decay(),
        Param("weight_decouple", True, "bool", "decay beside the update, as in AdamW, not through g"),
        Param("fixed_decay", False, "bool", "decoupled decay is not multiplied by lr"),
        Param("ams_bound", False, "bool", "divide by the largest average of g^2 so far (arXiv:1904.09237)"),
        Param("rectify", False, "bool", "wait until the variance is known, as radam does"),
        Param("n_sma_threshold", 5, "int", "length of the average from which it counts as known", "[1, inf)"),
        Param("degenerated_to_sgd", True, "bool", "until then, take momentum steps instead of none"),
        Param("d0", 1e-6, "float", "first estimate of the distance to the solution", "(0, inf)"),
        Param("growth_rate", float("inf"), "float", "largest growth of the estimate in a step", "(1, inf]"),
        Param("bias_correction", False, "bool", "correct the averages' start from zero"),
        Param("correct_bias", True, "bool", "correct the averages' start from zero"),
        Param("warmup_steps", 0, "int", "steps in which lr rises linearly", "[0, inf)"),
        Param("update_proj_gap", 200, "int", "steps between two projections", "[1, inf)"),
        Param("grad_averaging", False, "bool", "multiply g by 1 - beta_1 in the average"),
        Param("ns_steps", 5, "int", "Newton-Schulz iterations that orthogonalise a matrix", "[1, inf)"),
        Param("use_adjusted_lr", False, "bool", "scale the step of a matrix to the size of Adam's"),
        Param("adamw_lr", 3e-4, "float", "learning rate of what is no matrix, by AdamW", "(0, inf)"),
        Param("adamw_betas", (0.9, 0.95), "floats", "betas of AdamW", "[0, 1)", size=2),
        Param("adamw_wd", 0.0, "float", "weight decay of AdamW", "[0, inf)"),
        Param("adamw_eps", 1e-10, "float", "eps of AdamW", "(0, inf)"),
        Param("use_shadow", False, "bool", "mix in a slow copy of theta where the loss turns"),
        Param("shadow_weight", 0.05, "float", "weight of the slow copy", "[0, 1]"),
        Param("r", 0.0, "float", "power of t in the weights of the averaged theta", "[0, inf)"),
        Param("weight_lr_power", 2.0, "float", "power of lr in the weights of the averaged theta", "[0, inf)"),
        Param("delta", 0.1, "float", "cosine below which a step counts as radial-free", "[0, inf)"),
        Param("wd_ratio", 0.1, "float", "weight decay of scale-invariant weights, relative", "[0, 1]"),
        Param("decay_rate", 0.9, "float", "decay rate of the average agreement of g with the momentum", "[0, 1)"),
        Param("precondition_frequency", 10, "int", "steps between two preconditioners", "[1, inf)"),
        Param("matrix_eps", 1e-6, "float", "added to the diagonal before the inverse root", "(0, inf)"),
    )
}  # fmt: skip


def _entry(
    name: str,
    target: str,
    summary: str,
    source: str,
    *params: Param,
    aliases: tuple[str, ...] = (),
    formula: str = "",
    note: str = "",
    elementwise: bool = False,
    gradient_degree: int | None = 0,
    linear_in_lr: bool = True,
    differs_from: Mapping[str, str] = MappingProxyType({}),
    tags: Mapping[str, Any] = MappingProxyType({}),
    **defaults: Any,
) -> Block:
    """A record; `defaults` are those of shared parameters, `params` come after them."""
    known = tuple(_shared(key, value) for key, value in defaults.items()) + params
    names = {param.name for param in known}
    decays = "weight_decay" in names
    facts: dict[str, Any] = {"elementwise": elementwise, "linear_in_lr": linear_in_lr, "closure": False}
    if elementwise and gradient_degree is not None:
        facts["gradient_degree"] = gradient_degree
    if decays:
        decoupled = defaults.get("weight_decouple", "weight_decouple" not in names)
        facts["kind_of_decay"] = "decoupled" if decoupled else "l2"
    return Block(
        kind="optimizer",
        name=name,
        target=f"pytorch_optimizer:{target}",
        params=known + ((DECAY_NORM_AND_BIAS,) if decays else ()),
        aliases=aliases,
        summary=summary,
        formula=formula,
        source=source,
        note=note,
        differs_from=differs_from,
        tags={**facts, **tags},
        package=PACKAGE,
    )


def _shared(key: str, default: Any) -> Param:
    param = replace(_SHARED[key], default=default)
    return replace(param, size=len(default)) if isinstance(default, tuple) else param


_ADAM = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "weight_decouple": True,
    "fixed_decay": False,
}
# The key by which a group says that it holds matrices.
_MATRICES = {"matrix_flag": "use_muon"}
# The backward pass has to keep its graph: LitModule does; elsewhere call backward(create_graph=True).
_SECOND_ORDER = {"second_order": True}
# The weights to judge are not those that get the gradient: the optimizer has to be told which are wanted.
_SWITCHED = {"switches": True}

_NUM_SAMPLES = Param("num_samples", 1, "int", "random vectors for an estimate", "[1, inf)")
_CONSTRAINT = Param("constraint", False, "bool", "keep theta within the radius, instead of decay")
_NORM_TYPE = Param(
    "norm_type",
    1,
    "int",
    "the norm: 1 by the shape, 2 and 3 spectral, 4 sign, 5 bias, 6 columns, 7 rows, 0 none",
    choices=tuple(range(8)),
)


def _like_adam(**changed: Any) -> dict[str, Any]:
    return {**_ADAM, **changed}


BLOCKS: tuple[Block, ...] = (
    # Gradient descent and momentum.
    _entry("sgdw", "SGDW", "SGD with decoupled weight decay.", "Loshchilov & Hutter 2017, arXiv:1711.05101",
           lr=1e-4, momentum=0.0, weight_decay=0.0, weight_decouple=True, dampening=0.0, nesterov=False,
           formula="theta -= lr * weight_decay * theta; then as sgd", elementwise=True, gradient_degree=1),
    _entry("sgdp", "SGDP", "SGD that takes the radial part out of the steps of scale-invariant weights.",
           "Heo et al. 2020, arXiv:2006.08217",
           lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, weight_decouple=True, fixed_decay=False,
           delta=0.1, wd_ratio=0.1, nesterov=False, eps=1e-8,
           formula="b_t as sgd; a matrix's b_t loses its part along theta where |cos(theta, g)| < delta /"
           " sqrt(dimension); theta -= lr * b_t"),
    _entry("acc_sgd", "AccSGD", "SGD with long and short steps coupled.", "Jain et al. 2017, arXiv:1704.08227",
           Param("kappa", 1000.0, "float", "ratio of the long to the short step", "(0, inf)"),
           Param("xi", 10.0, "float", "statistical advantage", "(0, inf)"),
           Param("constant", 0.7, "float", "any number below 1", "(0, 1)"),
           lr=1e-3, weight_decay=0.0, aliases=("accsgd",), elementwise=True, gradient_degree=1,
           formula="a = constant^2 xi / kappa, b_0 = theta; b_t = (1 - a) b_(t-1) + a (theta - lr kappa / constant"
           " g); theta = (constant (theta - lr g) + a b_t) / (constant + a)"),
    _entry("sgd_sai", "SGDSaI", "Momentum whose rate in each tensor is set once, by its gradient's signal to noise.",
           "Xu et al. 2024, arXiv:2412.11768", lr=1e-2, momentum=0.9, weight_decay=0.01, weight_decouple=True,
           eps=1e-8, aliases=("sgdsai",),
           formula="m_t = momentum m_(t-1) + (1 - momentum) g; theta -= lr * s * m_t, s the signal to noise"
           " of the tensor's first g"),
    _entry("vsgd", "VSGD", "SGD whose gradient is estimated by variational inference.",
           "Chen et al. 2024 (openreview xu4ATNjcdy)",
           Param("ghattg", 30.0, "float", "prior ratio of the variances", "(0, inf)"),
           Param("ps", 1e-8, "float", "strength of the prior", "(0, inf)"),
           Param("tau1", 0.81, "float", "remembering of the first rate", "(0, inf)"),
           Param("tau2", 0.9, "float", "remembering of the second rate", "(0, inf)"),
           lr=0.1, weight_decay=0.0, weight_decouple=True, eps=1e-8, elementwise=True,
           formula="m_t = (h m_(t-1) + s g) / (s + h), q = m_t^2 + s h / (s + h); s, h: averages of 2 ps + q - 2 m_t"
           " m_(t-1) + m_(t-1)^2 and 2 ps ghattg + q - 2 m_t g + g^2 of weights t^(-tau1) and t^(-tau2), over 2 ps"
           " + 1.0001; theta -= lr * m_t / (sqrt(q) + eps)"),
    _entry("signum", "SignSGD", "Steps of lr along the sign of the momentum; sign SGD with momentum=0.",
           "Bernstein et al. 2018, arXiv:1802.04434", lr=1e-3, momentum=0.9, weight_decay=0.0,
           weight_decouple=True, aliases=("sign_sgd", "signsgd"), elementwise=True,
           formula="m_t = momentum m_(t-1) + (1 - momentum) g; theta -= lr * sign(m_t)"),
    _entry("qhm", "QHM", "Quasi-hyperbolic momentum: a mean of a plain and a momentum step.",
           "Ma & Yarats 2018, arXiv:1810.06801",
           Param("nu", 1.0, "float", "share of the momentum", "[0, 1]"),
           lr=1e-3, momentum=0.0, weight_decay=0.0, weight_decouple=False, fixed_decay=False, elementwise=True, gradient_degree=1,
           formula="b_t = momentum b_(t-1) + (1 - momentum) g; theta -= lr * ((1 - nu) g + nu b_t)"),
    _entry("aggmo", "AggMo", "The mean of several momenta.", "Lucas et al. 2018, arXiv:1804.00325",
           Param("betas", (0.0, 0.9, 0.99), "floats", "the momenta", "[0, 1)"),
           lr=1e-3, weight_decay=0.0, weight_decouple=False, fixed_decay=False, elementwise=True, gradient_degree=1,
           formula="b_i = beta_i b_i + g; theta -= lr * mean_i b_i"),
    _entry("pid", "PID", "Gradient, momentum and change of the gradient, as a PID controller.",
           "An et al. 2018 (CVPR)",
           Param("derivative", 10.0, "float", "factor of the change of g"),
           Param("integral", 5.0, "float", "factor of the momentum"),
           lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, weight_decouple=False, fixed_decay=False,
           elementwise=True, gradient_degree=1,
           formula="i = momentum i + (1 - dampening) g; d = momentum d + (1 - momentum)(g - g_(t-1)); theta"
           " -= lr * (g + integral i + derivative d)"),
    _entry("pnm", "PNM", "The difference of two momenta, which adds the noise of a smaller batch.",
           "Xie et al. 2021, arXiv:2103.17182",
           Param("betas", (0.9, 1.0), "floats", "decay rate of the averages, and weight of the negative one", "[0, 1]", size=2),
           lr=1e-3, weight_decay=0.0, weight_decouple=True, fixed_decay=False, eps=1e-8,
           elementwise=True, gradient_degree=1,
           formula="m_t = beta_1^2 m_(t-2) + (1 - beta_1^2) g; theta -= lr * ((1 + beta_2) m_t - beta_2"
           " m_(t-1)) / sqrt((1 + beta_2)^2 + beta_2^2)"),
    _entry("gravity", "Gravity", "A ball that rolls down the loss.", "Bahrami & Zadeh 2021, arXiv:2101.09192",
           Param("alpha", 0.01, "float", "deviation of the random first velocity", "[0, inf)"),
           lr=1e-2, beta=0.9, linear_in_lr=False,
           formula="b = (beta t + 1) / (t + 2); z = g / (1 + (g max|g|)^2); v_t = b v_(t-1) + (1 - b) z;"
           " theta -= lr * v_t"),
    _entry("msvag", "MSVAG", "Momentum damped where the gradient's variance is large.",
           "Balles & Hennig 2017, arXiv:1705.07774", lr=1e-2, beta=0.9, elementwise=True, gradient_degree=1,
           formula="m, v: averages of g and g^2 of rate beta, corrected; s = (v - m^2) / (1 - rho); theta -="
           " lr * m^3 / (m^2 + rho s), rho the variance of the average over that of g"),
    _entry("tam", "TAM", "Momentum whose new gradient counts by its agreement with the momentum.",
           "Malviya et al. 2024, arXiv:2412.18790",
           lr=1e-3, momentum=0.9, decay_rate=0.9, weight_decay=0.0, weight_decouple=True, fixed_decay=False,
           eps=1e-8,
           formula="s: average of the cosine of g and m_(t-1) of rate decay_rate; m_t = momentum m_(t-1) +"
           " ((1 + s) / 2 + eps) g; theta -= lr * m_t"),
    _entry("tiger", "Tiger", "Steps of lr along the sign of the average gradient.", "Su 2023 (github bojone/tiger)",
           lr=1e-3, beta=0.965, weight_decay=0.01, weight_decouple=True, fixed_decay=False, elementwise=True,
           formula="m_t = beta m_(t-1) + (1 - beta) g; theta -= lr * sign(m_t)"),
    _entry("lion", "Lion", "Steps of lr along the sign of a look-ahead momentum; wants a third to a tenth of Adam's lr.",
           "Chen et al. 2023, arXiv:2302.06675",
           lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, weight_decouple=True, fixed_decay=False, elementwise=True,
           formula="theta -= lr * sign(beta_1 m_(t-1) + (1 - beta_1) g); m_t = beta_2 m_(t-1) + (1 - beta_2) g"),
    _entry("ano", "Ano", "The sign of the momentum with the size of the gradient.",
           "Kegreisz 2025, arXiv:2508.18258",
           Param("logarithmic_schedule", False, "bool", "let beta_1 rise with log t"),
           lr=1e-4, betas=(0.92, 0.99), weight_decay=0.0, weight_decouple=True, fixed_decay=False, eps=1e-8,
           elementwise=True,
           formula="m_t as adam; v_t = beta_2 v_(t-1) + (1 - beta_2) sign(g^2 - v_(t-1)) g^2; theta -= lr *"
           " |g| sign(m_t) / (sqrt(v_t / (1 - beta_2^t)) + eps)"),
    _entry("focus", "FOCUS", "Sign steps, drawn to the running mean of theta.", "Liu et al. 2025, arXiv:2501.12243",
           Param("gamma", 0.1, "float", "strength of the attraction", "[0, inf)"),
           lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, elementwise=True,
           formula="m_t as adam, a_t the average of theta of rate beta_2, corrected; theta -= lr * (sign(m_t)"
           " + gamma sign(theta - a_t))"),
    _entry("bcos", "BCOS", "Steps of the size that is best for each coordinate.", "Jiang et al. 2025, arXiv:2507.08963",
           Param("beta2", None, "float", "decay rate of the second average; null is beta", "[0, 1)"),
           Param("mode", "c", "str", "direction: gradient, momentum, or conditional momentum", choices=("g", "m", "c")),
           Param("simple_cond", False, "bool", "the simpler conditional estimate"),
           lr=1e-3, beta=0.9, weight_decay=0.1, weight_decouple=True, eps=1e-6, elementwise=True,
           formula="m_t as adam with beta; v = (3 beta^2 - 2 beta^3) m_(t-1)^2 + (1 - beta)^2 g^2 + 2 beta (1"
           " - beta)^2 m_(t-1) g; theta -= lr * m_t / (sqrt(v) + eps)"),
    # Rates set by norms of tensors.
    _entry("lars", "LARS", "SGD whose rate in each tensor follows the ratio of weights to gradient.",
           "You et al. 2017, arXiv:1708.03888",
           Param("trust_coefficient", 1e-3, "float", "factor of that ratio", "(0, inf)"),
           lr=1e-3, weight_decay=0.0, momentum=0.9, dampening=0.0, nesterov=False, tags={"kind_of_decay": "l2"},
           note="vectors, such as biases, take momentum steps without decay",
           differs_from={"optax": "scales and decays vectors too; the ratio is to |g + weight_decay * theta|"},
           formula="g' = trust_coefficient |theta| / (|g| + weight_decay |theta|) * (g + weight_decay * theta) for"
           " tensors of two dimensions or more, else g; then as sgd"),
    _entry("fromage", "Fromage", "Steps of lr * |theta| along the gradient.", "Bernstein et al. 2020, arXiv:2002.03432",
           Param("p_bound", None, "float", "bound of the norm of theta, times its first", "(0, inf)"),
           lr=1e-2, linear_in_lr=False,
           formula="theta = (theta - lr |theta| g / |g|) / sqrt(1 + lr^2)"),
    _entry("nero", "Nero", "Steps balanced for each neuron, whose weights keep mean 0 and norm 1.",
           "Liu et al. 2021, arXiv:2102.07227",
           Param("constraints", True, "bool", "keep the norms"), lr=1e-2, beta=0.999, eps=1e-8, linear_in_lr=False,
           formula="v_t: average of a neuron's |g|^2, corrected; theta -= lr * scale * g / (sqrt(v_t) + eps);"
           " then each neuron's theta to mean 0 and norm 1"),
    _entry("novograd", "NovoGrad", "Momentum of gradients scaled by a second moment for each tensor.",
           "Ginsburg et al. 2019, arXiv:1905.11286",
           lr=1e-3, betas=(0.95, 0.98), weight_decay=0.0, weight_decouple=False, fixed_decay=False,
           grad_averaging=False, eps=1e-8,
           formula="v_t: average of |g|^2 of the tensor, v_1 = |g|^2; m_t = beta_1 m_(t-1) + g / (sqrt(v_t) +"
           " eps), times 1 - beta_1 with grad_averaging; theta -= lr * m_t"),
    _entry("adalite", "Adalite", "Factored averages with a trust ratio for each tensor.", "github VatsaDev/adalite",
           Param("g_norm_min", 1e-10, "float", "least norm of g", "[0, inf)"),
           Param("ratio_min", 1e-4, "float", "least ratio of weights to gradient", "[0, inf)"),
           Param("tau", 1.0, "float", "temperature of the weights of rows and columns", "(0, inf)"),
           lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, weight_decouple=True, fixed_decay=False, eps1=1e-6,
           eps2=1e-10,
           formula="g' = g max(|theta| / |g|, ratio_min); m_t, v_t: averages of g' and (g' - m_t)^2, of a matrix kept as"
           " products of rows and columns, m_t then nearer to g' where v_t is large; theta -= lr * (beta_1 m_t + (1 -"
           " beta_1) g') / sqrt(v_t / (1 - beta_2^t) + eps1)"),
    _entry("racs", "RACS", "SGD scaled by rows and columns.", "Gong et al. 2025, arXiv:2502.07752",
           Param("alpha", 0.05, "float", "factor of the update", "(0, inf)"),
           Param("gamma", 1.01, "float", "largest growth of the update's norm", "[1, inf)"),
           lr=1e-3, beta=0.9, weight_decay=0.0, weight_decouple=True, fixed_decay=False, eps=1e-8,
           formula="s, q: averages of the mean of g^2 in rows and in columns; u = g / sqrt((s + eps)(q + eps));"
           " theta -= lr * alpha * u, |u| at most gamma times the last"),
    _entry("rose", "ROSE", "Gradients scaled by the range of their rows and columns; no state.",
           "pytorch-optimizer 4.1",
           Param("centralize", True, "bool", "take the mean out of each slice of g"),
           Param("stabilize", True, "bool", "mix in the mean range"),
           lr=1e-3, weight_decay=1e-4, weight_decouple=False, fixed_decay=False,
           formula="g' = g - its mean in each row; r = |max g'| - min g' of the row, r' = r + std(r) / (mean(r) + std(r))"
           " * (mean(r) - r); theta -= lr * g' / r'; of a vector g / (|max g| - min g)"),
    # Adam and its kin.
    _entry("adabelief", "AdaBelief", "Adam with the variance of the gradient about its average as the second moment.",
           "Zhuang et al. 2020, arXiv:2010.07468",
           **_like_adam(rectify=False, n_sma_threshold=5, degenerated_to_sgd=True, ams_bound=False, eps=1e-16),
           elementwise=True,
           formula="m_t as adam; s_t = beta_2 s_(t-1) + (1 - beta_2)(g - m_t)^2 + eps;"
           " theta -= lr * (m_t / (1 - beta_1^t)) / (sqrt(s_t / (1 - beta_2^t)) + eps)"),
    _entry("adabound", "AdaBound", "Adam whose rates are bounded ever closer to that of SGD.",
           "Luo et al. 2019 (openreview Bkg3g2R9FX)",
           Param("final_lr", 0.1, "float", "the rate of SGD it ends at", "(0, inf)"),
           Param("gamma", 1e-3, "float", "how fast the bounds close", "(0, inf)"),
           **_like_adam(ams_bound=False, eps=1e-8), elementwise=True, linear_in_lr=False,
           formula="theta -= clip(lr sqrt(1 - beta_2^t) / (1 - beta_1^t) / (sqrt(v_t) + eps), final_lr (1 - 1"
           " / (gamma t + 1)), final_lr (1 + 1 / (gamma t))) * m_t"),
    _entry("adamod", "AdaMod", "Adam whose rates are bounded by their own average.", "Ding et al. 2019, arXiv:1910.12249",
           **_like_adam(betas=(0.9, 0.99, 0.9999), eps=1e-8), elementwise=True, linear_in_lr=False,
           formula="r = lr sqrt(1 - beta_2^t) / (1 - beta_1^t) / (sqrt(v_t) + eps); s_t = beta_3 s_(t-1) + (1"
           " - beta_3) r; theta -= min(r, s_t) * m_t"),
    _entry("adamp", "AdamP", "Adam that takes the radial part out of the steps of scale-invariant weights.",
           "Heo et al. 2020, arXiv:2006.08217",
           **_like_adam(delta=0.1, wd_ratio=0.1, nesterov=False, eps=1e-8),
           formula="adam's step; a matrix's loses its part along theta where |cos(theta, g)| < delta /"
           " sqrt(dimension)"),
    _entry("adams", "AdamS", "Adam with weight decay divided by the root of the mean of v: stable weight decay.",
           "Xie et al. 2020, arXiv:2011.11152", **_like_adam(weight_decay=1e-4, ams_bound=False, eps=1e-8),
           formula="adam's step; theta -= lr * weight_decay / (sqrt(mean(v_t / (1 - beta_2^t))) + eps) *"
           " theta, the mean over all parameters"),
    _entry("adamc", "AdamC", "AdamW whose decay of normalised layers follows the rate's square.",
           "Defazio 2025, arXiv:2506.02285", **_like_adam(ams_bound=False, eps=1e-8), elementwise=True,
           formula="theta -= r * weight_decay * theta, r = lr^2 / max lr for groups that say normalized, else"
           " lr; then as adam"),
    _entry("adamg", "AdamG", "Adam that needs no rate.", "Pan et al. 2024, arXiv:2405.04376",
           Param("p", 0.2, "float", "factor of the numerator p x^q", "(0, inf)"),
           Param("q", 0.24, "float", "power of the numerator", "(0, inf)"),
           **_like_adam(lr=1.0, betas=(0.95, 0.999, 0.95), weight_decouple=False, eps=1e-8), elementwise=True, gradient_degree=None,
           formula="v_t as adam; r_t = beta_3 r_(t-1) + (1 - beta_3) p v_t^q; m_t = beta_1 m_(t-1) + (1 -"
           " beta_1) r_t g; theta -= min(lr, 1 / sqrt(t)) * m_t / (1 - beta_1^t) / (sqrt(v_t / (1 -"
           " beta_2^t)) + eps)"),
    _entry("adamw_sn", "AdamWSN", "AdamW with one second moment for a subset of a tensor.",
           "Nguyen & Nguyen 2024, arXiv:2411.07120",
           Param("subset_size", -1, "int", "elements in a subset; -1 is half of a matrix's rows", "[-1, inf)"),
           **_like_adam(eps=1e-8), aliases=("adamwsn",), tags={"matrix_flag": "sn"},
           formula="as adamw, but v_t: average of the sum of g^2 in each subset of a matrix"),
    _entry("adan", "Adan", "Adam with Nesterov's momentum from differences of gradients.",
           "Xie et al. 2022, arXiv:2208.06677",
           Param("max_grad_norm", 0.0, "float", "clip all gradients to this norm; 0 for not", "[0, inf)"),
           lr=1e-3, betas=(0.98, 0.92, 0.99), weight_decay=0.0, weight_decouple=False, eps=1e-8, elementwise=True,
           tags={"kind_of_decay": "decoupled"},
           note="its betas are 1 minus the paper's",
           differs_from={"optax": "1 - beta_2 instead of beta_2 before d and u"},
           formula="d = g - g_(t-1); m, u: averages of g, d; n: average of (g + beta_2 d)^2;"
           " theta -= lr * (m + beta_2 u) / (sqrt(n) + eps), each average corrected for its start from zero"),
    _entry("adanorm", "AdaNorm", "Adam on gradients no shorter than their average norm.", "Dubey et al. 2022, arXiv:2210.06364",
           **_like_adam(betas=(0.9, 0.99), r=0.95, ams_bound=False, eps=1e-8),
           formula="e_t = r e_(t-1) + (1 - r) |g|; m_t: average of g max(1, e_t / |g|); v_t of g^2; then as"
           " adam"),
    _entry("adapnm", "AdaPNM", "Adam with the difference of two momenta.", "Xie et al. 2021, arXiv:2103.17182",
           Param("betas", (0.9, 0.999, 1.0), "floats", "decay rates of the averages, and weight of the negative one", "[0, 1]", size=3),
           lr=1e-3, weight_decay=0.0, weight_decouple=True, fixed_decay=False, ams_bound=True, eps=1e-8, elementwise=True,
           formula="m_t as pnm with beta_1 and beta_3 for beta_2; theta -= lr / (1 - beta_1^t) * m_t /"
           " (sqrt(v_t) + eps) * sqrt(1 - beta_2^t)"),
    _entry("adasmooth", "AdaSmooth", "Adadelta whose memory adapts to how straight the path is.",
           "Lu 2022, arXiv:2204.00825",
           **_like_adam(betas=(0.5, 0.99), weight_decouple=False, eps=1e-6),
           formula="s = sum of steps, n = sum of |steps|; c = (beta_2 - beta_1) |s| / (n + eps) + 1 - beta_2;"
           " v_t = (1 - c^2) v_(t-1) + c^2 g^2; theta -= lr * g / sqrt(v_t + eps)"),
    _entry("adatam", "AdaTAM", "TAM over a root mean square.", "Malviya et al. 2024, arXiv:2412.18790",
           **_like_adam(decay_rate=0.9, eps=1e-8), note="no correction of the start from zero: first step 15.8 lr",
           formula="m_t as tam with beta_1; v_t = beta_2 v_(t-1) + (1 - beta_2) g^2; theta -= lr * m_t /"
           " (sqrt(v_t) + eps)"),
    _entry("ademamix", "AdEMAMix", "Adam with a fast and a slow momentum.", "Pagliardini et al. 2024, arXiv:2409.03137",
           Param("alpha", 5.0, "float", "weight of the slow momentum", "[0, inf)"),
           Param("t_alpha_beta3", None, "float", "steps in which alpha and beta_3 rise to their values", "(0, inf)"),
           **_like_adam(betas=(0.9, 0.999, 0.9999), weight_decouple=False, eps=1e-8), elementwise=True,
           formula="theta -= lr * (m_1 / (1 - beta_1^t) + alpha m_2) / (sqrt(v / (1 - beta_2^t)) + eps),"
           " m_2 = beta_3 m_2 + (1 - beta_3) g"),
    _entry("aida", "Aida", "AdaBelief of gradients and momenta projected on each other.", "Zhang et al. 2022, arXiv:2203.13273",
           Param("k", 2, "int", "projections in a step", "[0, inf)"),
           Param("xi", 1e-20, "float", "added to the norms of the projections", "[0, inf)"),
           **_like_adam(weight_decouple=False, rectify=False, n_sma_threshold=5, degenerated_to_sgd=True,
                        ams_bound=False, eps=1e-8),
           formula="m_t as adam; p = g, q = m_t, then k times: p, q = <p, q> / |p|^2 p, <p, q> / |q|^2 q; v_t = beta_2"
           " v_(t-1) + (1 - beta_2)(q - p)^2 + eps; theta -= lr * (m_t / (1 - beta_1^t)) / ((sqrt(v_t) + eps) / sqrt(1 -"
           " beta_2^t))"),
    _entry("amos", "Amos", "Adam-like steps with a weight decay that finds its own strength.", "Tian & Parikh 2022, arXiv:2210.11693",
           Param("c_coef", 0.25, "float", "factor of the first decay factor", "[0, inf)"),
           Param("d_coef", 0.25, "float", "factor of the second decay factor", "[0, inf)"),
           lr=1e-3, beta=0.999, momentum=0.0, eps=1e-18, linear_in_lr=False,
           formula="v_t: average of mean(g^2), corrected; c = lr^2 mean(g^2) / v_t / sqrt(1 + c_coef sqrt(lr) b); theta -="
           " (lr s g / sqrt(v_t) + c theta / 2) / (1 + d_coef sqrt(lr s) b); b = b + c (1 + b); s = sqrt(2 / columns), of a"
           " vector 0.5, of a kernel sqrt(1 / channels in)"),
    _entry("apollo_dqn", "ApolloDQN", "A diagonal quasi-Newton method.", "Ma 2020, arXiv:2009.13586",
           Param("init_lr", 1e-5, "float", "rate at the start of the warm-up", "(0, inf)"),
           Param("rebound", "constant", "str", "lower bound of the curvature", choices=("constant", "belief")),
           Param("weight_decay_type", "l2", "str", "how the weights decay", choices=("l2", "decoupled", "stable")),
           lr=1e-2, beta=0.9, weight_decay=0.0, warmup_steps=500, eps=1e-4, aliases=("apollodqn",), linear_in_lr=False,
           note="through the warm-up a schedule of lr has no effect",
           formula="a = (1 - beta) / (1 - beta^t), e = g - m_(t-1), m_t = m_(t-1) + a e; d = d / (|d|_4 + 100 eps); B -= (a"
           " <e, d> / (|d|_4 + 100 eps) + <d^2, B>) d^2; d = m_t / max(|B|, 0.01); theta -= lr * d"),
    _entry("avagrad", "AvaGrad", "Adam that divides by the second moment before; the rate parts from eps.",
           "Savarese et al. 2019, arXiv:1912.01823",
           **_like_adam(lr=0.1, eps=0.1), note="its first step only sets v",
           formula="theta -= gamma lr / (1 - beta_1^t) * m_t / (sqrt(v_(t-1) / (1 - beta_2^(t-1))) + eps), 1"
           " / gamma^2 the mean of the squared inverses of the last denominators"),
    _entry("diffgrad", "DiffGrad", "Adam braked where the gradient changes little.", "Dubey et al. 2019, arXiv:1909.11015",
           **_like_adam(rectify=False, n_sma_threshold=5, degenerated_to_sgd=True, ams_bound=False, eps=1e-8),
           elementwise=True, formula="adam's step times 1 / (1 + exp(-|g_(t-1) - g|))"),
    _entry("dual_adam", "DualAdam", "Adam mixed, at first, with an Adam of the inverse.", "pytorch-optimizer 4.1",
           Param("switch_rate", 0.01, "float", "how fast the mixture ends", "[0, inf)"),
           **_like_adam(weight_decouple=False, eps=1e-8), aliases=("dualadam",), elementwise=True, gradient_degree=None,
           formula="m, v as adam, corrected, D = sqrt(v) + eps; theta -= lr * m * ((1 - c) / D + c D), c"
           " falls from 1 to 0 by switch_rate"),
    _entry("emonavi", "EmoNavi", "Adam scaled by the trend of the loss.", "github muooon/EmoNavi",
           **_like_adam(use_shadow=False, shadow_weight=0.05, weight_decay=0.01, eps=1e-8), elementwise=True,
           note="no correction of the start from zero: first step 3.2 lr",
           formula="m, v as adam; s = tanh of (slow - fast average of the loss) / slow; theta -= lr * c * m_t / (sqrt(v_t) +"
           " eps), c = 8 r (1 + 0.1 sign(s) r), r = 1 - |s|, where 1/4 < |s| < 1/2, r where |s| > 3/4, else 1"),
    _entry("emolynx", "EmoLynx", "Lion scaled by the trend of the loss.", "github muooon/EmoNavi",
           **_like_adam(betas=(0.9, 0.99), use_shadow=False, shadow_weight=0.05, weight_decay=0.01, eps=1e-8),
           elementwise=True,
           formula="theta -= lr * c * sign(beta_1 m_(t-1) + (1 - beta_1) g), c as emonavi; m_t = beta_2 m_(t-1) + (1 -"
           " beta_2) g"),
    _entry("exadam", "EXAdam", "Adam whose two averages correct each other.", "Adly 2024, arXiv:2412.20302",
           **_like_adam(eps=1e-8), elementwise=True, note="first steps of up to 16 lr",
           formula="d_1 = 1 + beta_2^t v_t / (v_t + eps), d_2 = 1 + beta_1^t m_t^2 / (m_t^2 + eps); theta -="
           " lr * (m_t + g) d_1 / (1 - beta_1^t) / (sqrt(d_2 v_t / (1 - beta_2^t)) + eps)"),
    _entry("fadam", "FAdam", "Natural gradient by the diagonal of the empirical Fisher information.",
           "Hwang 2024, arXiv:2405.12807",
           Param("clip", 1.0, "float", "largest root mean square of the natural gradient", "(0, inf)"),
           Param("p", 0.5, "float", "power of the Fisher information", "(0, inf)"),
           Param("eps_2", 0.01, "float", "factor of the gradient's root mean square in eps", "[0, inf)"),
           lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1, eps=1e-8, tags={"kind_of_decay": "l2"},
           formula="v_t: average of g^2, corrected; u = g / (v_t^p + eps^(2 p)), at most rms clip; m_t:"
           " average of u; theta -= lr * (m_t + weight_decay * theta / (v_t^p + eps^(2 p)))"),
    _entry("flash_adamw", "FlashAdamW", "AdamW with averages of 8 bits.", "pytorch-optimizer 4.1",
           Param("quantize", True, "bool", "keep the averages in 8 bits"),
           lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8, aliases=("flashadamw",),
           formula="as adamw, m_t and sqrt(v_t) rounded to 8 bits after each step, with a scale for each block"),
    _entry("grams", "Grams", "Adam's size with the gradient's sign.", "Cao et al. 2024, arXiv:2412.17107",
           lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, weight_decouple=True, eps=1e-6, elementwise=True,
           formula="theta -= lr * sign(g) * |adam's step|"),
    _entry("grokfast_adamw", "GrokFastAdamW", "AdamW on gradients whose slow part is amplified.", "Lee et al. 2024, arXiv:2405.20233",
           Param("grokfast", True, "bool", "amplify"),
           Param("grokfast_alpha", 0.98, "float", "decay rate of the slow part", "[0, 1)"),
           Param("grokfast_lamb", 2.0, "float", "factor of the slow part", "[0, inf)"),
           Param("grokfast_after_step", 0, "int", "steps before it begins", "[0, inf)"),
           Param("normalize_lr", True, "bool", "divide lr by 1 + grokfast_lamb"),
           **_like_adam(lr=1e-4, betas=(0.9, 0.99), eps=1e-8), aliases=("grokfastadamw",), elementwise=True,
           formula="s_t = grokfast_alpha s_(t-1) + (1 - grokfast_alpha) g, s_0 = g; as adamw on g + grokfast_lamb s_t with lr / (1 +"
           " grokfast_lamb)"),
    _entry("kate", "Kate", "Adagrad without its square root, invariant to scale.", "Choudhury et al. 2024, arXiv:2403.02648",
           Param("delta", 0.0, "float", "added to the sum of squares", "[0, inf)"),
           lr=1e-3, weight_decay=0.0, weight_decouple=True, fixed_decay=False, eps=1e-8, elementwise=True, gradient_degree=None,
           formula="b^2 += g^2; m^2 += delta g^2 + g^2 / b^2; theta -= lr * m g / b^2"),
    _entry("laprop", "LaProp", "Momentum of gradients that are already over their root mean square.",
           "Ziyin et al. 2020, arXiv:2002.04839",
           Param("centered", False, "bool", "subtract the square of the average of g"),
           Param("steps_before_using_centered", 10, "int", "steps before that begins", "[0, inf)"),
           **_like_adam(lr=4e-4, ams_bound=False, eps=1e-15), elementwise=True, linear_in_lr=False,
           formula="m_t = beta_1 m_(t-1) + (1 - beta_1) lr g sqrt(1 - beta_2^t) / (sqrt(v_t) + eps); theta -="
           " m_t / (1 - beta_1^t)"),
    _entry("madgrad", "MADGRAD", "Dual averaging with the cube root of the squares' sum.", "Defazio & Jelassi 2021, arXiv:2101.11075",
           lr=1e-3, momentum=0.9, weight_decay=0.0, weight_decouple=False, eps=1e-6, elementwise=True, gradient_degree=None, linear_in_lr=False,
           formula="l = lr sqrt(t); s += l g, n += l g^2; z = theta_0 - s / (n^(1/3) + eps); theta = momentum"
           " theta + (1 - momentum) z"),
    _entry("mars", "MARS", "AdamW on gradients of reduced variance.", "Yuan et al. 2024, arXiv:2411.10438",
           Param("gamma", 0.025, "float", "strength of the reduction", "[0, inf)"),
           Param("mars_type", "adamw", "str", "the update that follows", choices=("adamw", "lion", "shampoo")),
           Param("optimize_1d", False, "bool", "treat what is no matrix alike"),
           Param("lr_1d", 3e-3, "float", "learning rate of what is no matrix", "(0, inf)"),
           Param("betas_1d", (0.9, 0.95), "floats", "betas of what is no matrix", "[0, 1)", size=2),
           Param("weight_decay_1d", 0.1, "float", "weight decay of what is no matrix", "[0, inf)"),
           Param("cautious", False, "bool", "drop what points against g"),
           **_like_adam(lr=3e-3, betas=(0.95, 0.99), ams_bound=False, eps=1e-8),
           formula="c = g + gamma beta_1 / (1 - beta_1) (g - g_(t-1)), at most of norm 1; then as adamw on c"),
    _entry("padam", "PAdam", "Adam with a power of the second moment between SGD's and Adam's.", "Chen et al. 2018, arXiv:1806.06763",
           Param("partial", 0.25, "float", "the power of v; 0.5 is adam", "[0, 0.5]"),
           **_like_adam(lr=0.1, weight_decouple=False, eps=1e-8), elementwise=True, gradient_degree=None,
           formula="theta -= lr * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m_t / (sqrt(v_t) + eps)^(2 partial)"),
    _entry("qhadam", "QHAdam", "Adam with quasi-hyperbolic averages.", "Ma & Yarats 2018, arXiv:1810.06801",
           Param("nus", (1.0, 1.0), "floats", "shares of the averages", "[0, 1]", size=2),
           **_like_adam(weight_decouple=False, eps=1e-8), elementwise=True,
           formula="theta -= lr * ((1 - nu_1) g + nu_1 m) / (sqrt((1 - nu_2) g^2 + nu_2 v) + eps)"),
    _entry("stable_adamw", "StableAdamW", "AdamW whose rate falls where the update is longer than expected.",
           "Wortsman et al. 2023, arXiv:2304.13013",
           lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, weight_decouple=True, eps=1e-8, aliases=("stableadamw",),
           formula="m_t, v_t as adam, corrected; r = lr / max(1, sqrt(mean(g^2 / v_t))) in each tensor; theta -= r *"
           " weight_decay * theta + r * m_t / (sqrt(v_t) + eps)"),
    _entry("spam", "SPAM", "Adam that clips spikes and forgets its averages from time to time.", "Huang et al. 2025, arXiv:2501.06842",
           Param("density", 1.0, "float", "share of a matrix that moves", "(0, 1]"),
           Param("warmup_epoch", 50, "int", "steps in which the rate rises again after forgetting", "[1, inf)"),
           Param("threshold", 5000, "int", "g^2 / v beyond which it is a spike", "[1, inf)"),
           Param("grad_accu_steps", 20, "int", "steps after forgetting before the clipping begins", "[0, inf)"),
           lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, update_proj_gap=500, eps=1e-6, elementwise=True,
           formula="g = sign(g) sqrt(threshold v_(t-1)) where g^2 > threshold v_(t-1); m = v = 0 every"
           " update_proj_gap steps; then as adam"),
    _entry("stable_spam", "StableSPAM", "SPAM with an adaptive threshold and norm.", "Huang et al. 2025, arXiv:2502.17055",
           Param("gamma1", 0.7, "float", "decay rate of the average norm", "[0, 1]"),
           Param("gamma2", 0.9, "float", "decay rate of the average square norm", "[0, 1]"),
           Param("theta", 0.999, "float", "decay rate of the largest |g|", "[0, 1]"),
           Param("t_max", None, "int", "steps of the cosine of beta_1", "[1, inf)"),
           Param("eta_min", 0.5, "float", "where that cosine ends", "[0, 1]"),
           lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, update_proj_gap=1000, eps=1e-8, aliases=("stablespam",),
           formula="h_t: average of max|g| of rate theta, corrected; entries beyond it by h_t / max|g|; n, n2: averages of |g|"
           " and |g|^2 of rates gamma1, gamma2, corrected; as adam on g / |g| * n / (sqrt(n2) + eps), m = v = 0 every"
           " update_proj_gap steps"),
    _entry("swats", "SWATS", "Adam that turns into SGD.", "Keskar & Socher 2017, arXiv:1712.07628",
           **_like_adam(weight_decouple=False, ams_bound=False, nesterov=False, eps=1e-6),
           formula="p: adam's step; r_t: average of |p|^2 / <p, g> of rate beta_2, corrected; once the two agree: lr = r_t,"
           " b_t = beta_1 b_(t-1) + g; theta -= lr * (1 - beta_1) b_t"),
    _entry("yogi", "Yogi", "Adam whose second moment changes by at most (1 - beta_2) g^2.", "Zaheer et al. 2018 (NeurIPS)",
           Param("initial_accumulator", 1e-6, "float", "v_0", "[0, inf)"),
           **_like_adam(lr=1e-2, eps=1e-3), elementwise=True,
           formula="v_t = v_(t-1) - (1 - beta_2) sign(v_(t-1) - g^2) g^2; then as adam"),
    _entry("adagc", "AdaGC", "AdamW with gradients of each tensor clipped to their average norm.", "Wang et al. 2025, arXiv:2502.11034",
           Param("beta", 0.98, "float", "decay rate of the average norm", "[0, 1)"),
           Param("lambda_abs", 1.0, "float", "clipping norm of the first steps", "(0, inf)"),
           Param("lambda_rel", 1.05, "float", "clipping norm afterwards, times the average", "(0, inf)"),
           **_like_adam(warmup_steps=100, weight_decay=0.1, eps=1e-8),
           formula="g' = g min(1, lambda_rel gamma_t / |g|) in each tensor, gamma_t its average of |g'|, in"
           " the first steps min(1, lambda_abs / |all g|); then as adamw on g'"),
    _entry("adai", "Adai", "Momentum that adapts in place of the rate.", "Xie et al. 2020, arXiv:2006.15815",
           Param("stable_weight_decay", False, "bool", "divide the decay by the mean of v"),
           **_like_adam(betas=(0.1, 0.99), weight_decouple=False, dampening=1.0, eps=1e-3),
           formula="v_t: average of g^2, corrected; beta = clip(1 - beta_1 (v_t / mean(v_t))^(1 / (3 - 2"
           " dampening)), 0, 1 - eps); m_t = beta m_(t-1) + (1 - beta)^dampening g, corrected; theta"
           " -= lr * m_t * beta_1^(1 - dampening)"),
    # Rates that need no setting: leave lr at 1.
    _entry("prodigy", "Prodigy", "Adam that finds its rate from the distance travelled; lr stays 1.",
           "Mishchenko & Defazio 2023, arXiv:2306.06101",
           Param("beta3", None, "float", "decay rate of the estimate's sums; null is sqrt(beta_2)", "[0, 1)"),
           Param("d_coef", 1.0, "float", "factor of the estimate", "(0, inf)"),
           Param("safeguard_warmup", False, "bool", "keep the warm-up out of the estimate"),
           **_like_adam(lr=1.0, d0=1e-6, growth_rate=float("inf"), bias_correction=False, eps=1e-8),
           linear_in_lr=False,
           formula="m, v as adam of d g; r += d / d0 * lr d <g, theta_0 - theta>, s += lr d^2 / d0 * g, both"
           " of decay beta_3; theta -= lr d * m_t / (sqrt(v_t) + d eps); d = max(d, d_coef r / |s|_1)"),
    _entry("d_adapt_adam", "DAdaptAdam", "Adam that finds its rate; lr stays 1.", "Defazio & Mishchenko 2023, arXiv:2301.07733",
           **_like_adam(lr=1.0, d0=1e-6, growth_rate=float("inf"), weight_decouple=False, bias_correction=False, eps=1e-8),
           aliases=("dadaptadam",), linear_in_lr=False,
           formula="m_t = beta_1 m_(t-1) + (1 - beta_1) lr d g, v_t as adam; theta -= m_t / (sqrt(v_t) +"
           " eps); s, r: averages of rate sqrt(beta_2) of lr d g and lr d <g, s / (sqrt(v_(t-1)) +"
           " eps)>; d = max(d, r / ((1 - sqrt(beta_2)) |s|_1))"),
    _entry("d_adapt_sgd", "DAdaptSGD", "SGD that finds its rate; lr stays 1.", "Defazio & Mishchenko 2023, arXiv:2301.07733",
           lr=1.0, momentum=0.9, d0=1e-6, growth_rate=float("inf"), weight_decay=0.0, weight_decouple=False,
           fixed_decay=False, aliases=("dadaptsgd",), linear_in_lr=False,
           formula="l = lr d / |g_1|; r += l <g, s>, s += l g; d = max(d, 2 r / |s|); theta = momentum theta"
           " + (1 - momentum)(theta_0 - s)"),
    _entry("d_adapt_adagrad", "DAdaptAdaGrad", "Adagrad that finds its rate; lr stays 1.", "Defazio & Mishchenko 2023, arXiv:2301.07733",
           lr=1.0, momentum=0.0, d0=1e-6, growth_rate=float("inf"), weight_decay=0.0, weight_decouple=False,
           fixed_decay=False, eps=0.0, aliases=("dadaptadagrad",), linear_in_lr=False,
           formula="s += lr d g, a += g^2 from 1e-6; r += lr^2 d^2 sum(g^2 / sqrt(a)); d = max(d, (sum(s^2 / sqrt(a)) - r) /"
           " |s|_1); theta = theta_0 - s / (sqrt(a) + eps)"),
    _entry("d_adapt_lion", "DAdaptLion", "Lion that finds its rate; lr stays 1.", "Defazio & Mishchenko 2023, arXiv:2301.07733",
           **_like_adam(lr=1.0, d0=1e-6, weight_decouple=False), aliases=("dadaptlion",), linear_in_lr=False,
           formula="u = sign(beta_1 m + (1 - beta_1) g); theta -= lr d u; m = beta_2 m + (1 - beta_2) lr d g;"
           " s, r: averages of rate sqrt(beta_2) of lr d u and lr d <u, s>; d = max(d, r / ((1 -"
           " sqrt(beta_2)) |s|_1))"),
    _entry("ftrl", "FTRL", "Follow the regularised leader: sparse weights by an l1 term.", "McMahan et al. 2013 (KDD)",
           Param("lr_power", -0.5, "float", "power of the rate's decay", "(-inf, 0]"),
           Param("beta", 0.0, "float", "added to the root", "[0, inf)"),
           Param("lambda_1", 0.0, "float", "strength of the l1 term", "[0, inf)"),
           Param("lambda_2", 0.0, "float", "strength of the l2 term", "[0, inf)"),
           lr=1e-3, elementwise=True, linear_in_lr=False,
           formula="n_t = n_(t-1) + g^2; z += g - (n_t^(-lr_power) - n_(t-1)^(-lr_power)) / lr * theta;"
           " theta = 0 where |z| <= lambda_1, else (sign(z) lambda_1 - z) / ((beta + sqrt(n_t)) / lr + lambda_2)",
           differs_from={"keras": "n_0 = 0.1 by default; its l2 counts twice; lr_power in the denominator too"}),
    _entry("schedule_free_sgd", "ScheduleFreeSGD", "SGD at the average of its own path, in place of a schedule.",
           "Defazio et al. 2024, arXiv:2405.15682",
           lr=1.0, momentum=0.9, weight_decay=0.0, r=0.0, weight_lr_power=2.0, warmup_steps=0, eps=1e-8,
           aliases=("schedulefreesgd",), elementwise=True, gradient_degree=1, linear_in_lr=False, tags=_SWITCHED,
           formula="y = (1 - momentum) z + momentum x; z -= lr * g(y); x = (1 - c_t) x + c_t z; x is the model"),
    _entry("schedule_free_adamw", "ScheduleFreeAdamW", "AdamW at the average of its own path, in place of a schedule.",
           "Defazio et al. 2024, arXiv:2405.15682",
           lr=2.5e-3, betas=(0.9, 0.999), weight_decay=0.0, r=0.0, weight_lr_power=2.0, warmup_steps=0,
           ams_bound=False, eps=1e-8, aliases=("schedulefreeadamw",), elementwise=True, linear_in_lr=False, tags=_SWITCHED,
           differs_from={"keras": "on torch, it finds x from y with z of after the step, not of before"},
           formula="y = (1 - beta_1) z + beta_1 x; z -= lr * g(y) / (sqrt(v_t / (1 - beta_2^t)) + eps);"
           " x = (1 - c_t) x + c_t z; x is the model"),
    _entry("schedule_free_radam", "ScheduleFreeRAdam", "RAdam at the average of its own path, in place of a schedule.",
           "Defazio et al. 2024, arXiv:2405.15682",
           Param("silent_sgd_phase", True, "bool", "no steps until the variance is known"),
           lr=2.5e-3, betas=(0.9, 0.999), weight_decay=0.0, r=0.0, weight_lr_power=2.0, eps=1e-8,
           aliases=("schedulefreeradam",), elementwise=True, linear_in_lr=False, tags=_SWITCHED,
           formula="as schedule_free_adamw with radam's rate"),
    # Matrices as matrices.
    _entry("adamuon", "AdaMuon", "Muon with a second moment; what is no matrix goes by AdamW.", "Si et al. 2025, arXiv:2507.11005",
           Param("lr", 0.02, "float", "learning rate of the matrices", "(0, inf)"),
           betas=(0.9, 0.95), weight_decay=0.0, weight_decouple=True, ns_steps=5, use_adjusted_lr=True,
           adamw_lr=3e-4, adamw_betas=(0.9, 0.999), adamw_wd=0.0, eps=1e-10, tags=_MATRICES,
           formula="m_t as adam; U V' of m_t = U S V'; v_t: average of (U V')^2, corrected; u = U V' /"
           " (sqrt(v_t) + eps) at the norm sqrt(min(rows, columns)); theta -= lr * u, with"
           " use_adjusted_lr of a size that fits the shape"),
    _entry("normuon", "NorMuon", "Muon with a second moment for each row; what is no matrix goes by AdamW.",
           "Li et al. 2025, arXiv:2510.05491",
           Param("lr", 0.02, "float", "learning rate of the matrices", "(0, inf)"),
           Param("beta2", 0.95, "float", "decay rate of the rows' second moment", "[0, 1)"),
           momentum=0.95, weight_decay=0.0, weight_decouple=True, nesterov=True, ns_steps=5,
           use_adjusted_lr=False, adamw_lr=3e-4, adamw_betas=(0.9, 0.95), adamw_wd=0.0, adamw_eps=1e-10, eps=1e-10,
           tags=_MATRICES,
           formula="U V' as muon; v_t: average of its mean square in each row; theta -= lr * U V' /"
           " (sqrt(v_t) + eps), brought back to the norm of U V'"),
    _entry("came", "CAME", "Adafactor with a confidence in the update.", "Luo et al. 2023, arXiv:2307.02047",
           Param("clip_threshold", 1.0, "float", "largest root mean square of the update", "(0, inf)"),
           Param("eps2", 1e-16, "float", "added to the squared instability", "(0, inf)"),
           **_like_adam(lr=2e-4, betas=(0.9, 0.999, 0.9999), ams_bound=False, eps1=1e-30),
           formula="u as adafactor; m_t: average of u; S: rows x columns / mean(rows), averages of (u -"
           " m_t)^2 + eps2; theta -= lr * m_t / sqrt(S)"),
    _entry("sm3", "SM3", "Adagrad with one sum for each row and column.", "Anil et al. 2019, arXiv:1901.11150",
           lr=0.1, momentum=0.0, beta=0.0, eps=1e-30,
           formula="v = min(r of its row, c of its column) + g^2; r, c = largest v of each row and column; theta -= lr * g /"
           " sqrt(v + eps)"),
    replace(_entry("shampoo", "Shampoo", "Preconditioned on both sides of a matrix by inverse roots.", "Gupta et al. 2018, arXiv:1802.09568",
           Param("preconditioning_compute_steps", 1, "int", "steps between two inverse roots", "[1, inf)"),
           lr=1e-3, momentum=0.0, weight_decay=0.0, weight_decouple=False, fixed_decay=False, matrix_eps=1e-6,
           formula="L += g g', R += g' g; theta -= lr * L^(-1/4) g R^(-1/4)"), target="dlblocks.optimizers.shampoo:Shampoo"),
    _entry("soap", "SOAP", "Adam in the eigenbasis of Shampoo.", "Vyas et al. 2024, arXiv:2409.11321",
           Param("shampoo_beta", None, "float", "decay rate of the preconditioner; null is beta_2", "[0, 1)"),
           Param("max_precondition_dim", 10000, "int", "larger dimensions are left alone", "[1, inf)"),
           Param("merge_dims", False, "bool", "merge the dimensions of a convolution"),
           Param("precondition_1d", False, "bool", "precondition vectors too"),
           Param("normalize_gradient", False, "bool", "bring the update to a root mean square of 1"),
           lr=3e-3, betas=(0.95, 0.95), weight_decay=0.01, precondition_frequency=10, correct_bias=True, eps=1e-8,
           note="its first step only sets the basis",
           formula="L, R: averages of g g' and g' g of rate shampoo_beta, Q_L, Q_R their eigenvectors; m_t, v_t: averages of g"
           " and (Q_L' g Q_R)^2, corrected; theta -= lr * Q_L (Q_L' m_t Q_R / (sqrt(v_t) + eps)) Q_R'"),
    replace(_entry("splus", "SPlus", "Shampoo with signs in the eigenbasis, judged at an average of theta.", "Frans et al. 2025, arXiv:2506.07254",
           Param("ema_rate", 0.999, "float", "decay rate of the average of theta", "[0, 1)"),
           Param("inverse_steps", 100, "int", "steps between two eigenbases", "[1, inf)"),
           Param("nonstandard_constant", 1e-3, "float", "factor of the rate of what is no matrix", "(0, inf)"),
           Param("max_dim", 10000, "int", "larger dimensions count as no matrix", "[1, inf)"),
           **_like_adam(lr=0.1, weight_decay=0.01, eps=1e-30), tags=_SWITCHED,
           formula="m_t: average of g; Q_L, Q_R: eigenvectors of averages of g g' and g' g of rate beta_2; theta -= lr * 2 /"
           " (rows + columns) * Q_L sign(Q_L' m_t Q_R) Q_R', of what is no matrix lr * nonstandard_constant * sign(m_t);"
           " the average of theta is the model"), target="dlblocks.optimizers.splus:SPlus"),
    _entry("dash", "DASH", "Shampoo in blocks, whose inverse roots come from Newton's method.", "2026, arXiv:2602.02016",
           Param("block_size", 1024, "int", "largest side of a block", "[1, inf)"),
           Param("start_preconditioning_step", 1, "int", "steps before it begins", "[1, inf)"),
           lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, precondition_frequency=10, momentum=0.0, nesterov=True,
           correct_bias=True, eps=1e-8, matrix_eps=1e-10,
           formula="m_t as adam; L, R: averages of g g' and g' g of rate beta_2; theta -= lr * L^(-1/4) m_t R^(-1/4), of a"
           " vector L^(-1/2) m_t, each block brought to the norm of adam's step"),
    _entry("scion", "SCION", "Steps of a fixed size in a norm that fits the shape: spectral for matrices.",
           "Pethick et al. 2025, arXiv:2502.07529",
           Param("momentum", 0.1, "float", "weight of g in its average", "(0, 1]"),
           _CONSTRAINT, _NORM_TYPE,
           Param("scale", 1.0, "float", "size of the step, or radius", "(0, inf)"),
           lr=1e-3, weight_decay=0.0, weight_decouple=True,
           formula="m_t = (1 - momentum) m_(t-1) + momentum g = U S V'; theta -= lr * scale * sqrt(rows / columns) U V' (by"
           " Newton-Schulz, singular values 0.7 to 1.2), of a vector lr * scale * m_t / rms(m_t)"),
    # By the diagonal of the Hessian, from random products with it.
    _entry("adahessian", "AdaHessian", "Adam with the Hessian's diagonal in place of the gradient's square.",
           "Yao et al. 2020, arXiv:2006.00719",
           Param("hessian_power", 1.0, "float", "power of the diagonal", "[0, 1]"), _NUM_SAMPLES,
           Param("hessian_distribution", "rademacher", "str", "of the random vectors", choices=("rademacher", "gaussian")),
           Param("update_period", 1, "int", "steps between two estimates", "[1, inf)"),
           **_like_adam(lr=0.1, eps=1e-16), tags=_SECOND_ORDER,
           note="weights without curvature, as many are behind relu, take steps of any size: raise eps or lower lr",
           formula="theta -= lr * (m_t / (1 - beta_1^t)) / (sqrt(D_t / (1 - beta_2^t))^hessian_power + eps),"
           " D the average of the squared diagonal"),
    _entry("sophia", "SophiaH", "Momentum over the Hessian's diagonal, clipped.", "Liu et al. 2023, arXiv:2305.14342",
           Param("p", 0.01, "float", "largest entry of the update", "(0, inf)"), _NUM_SAMPLES,
           Param("hessian_distribution", "gaussian", "str", "of the random vectors", choices=("rademacher", "gaussian")),
           Param("update_period", 10, "int", "steps between two estimates", "[1, inf)"),
           **_like_adam(lr=0.06, betas=(0.96, 0.99), eps=1e-12), aliases=("sophiah",), tags=_SECOND_ORDER,
           differs_from={"optax": "corrects m's start from zero, takes h of the step before, and clips"
                         " m / max(0.01 h, eps) at 1: its lr is 0.01 of ours"},
           formula="h: average of the diagonal; theta -= lr * clip(m_t / max(h, eps), p)"),
    _entry("alice", "Alice", "Adam in a tracked subspace, with what is outside made good.", "Gong et al. 2025, arXiv:2502.07752",
           Param("alpha", 0.3, "float", "factor of the update in the subspace", "(0, inf)"),
           Param("alpha_c", 0.4, "float", "factor of what is outside", "[0, inf)"),
           Param("update_interval", 200, "int", "steps between two subspaces", "[1, inf)"),
           Param("rank", 256, "int", "dimensions of the subspace", "[1, inf)"),
           Param("gamma", 1.01, "float", "largest growth of the norm of what is outside", "[1, inf)"),
           Param("leading_basis", 40, "int", "leading directions that stay", "[1, inf)"),
           **_like_adam(lr=0.02, betas=(0.9, 0.9, 0.999), eps=1e-8),
           note="no correction of the start from zero; of a matrix with more rows than rank, the first update_interval steps"
           " take the first rows for the subspace",
           formula="U: leading eigenvectors of the average of g g' of rate beta_3; m, v: averages of U' g and its square; p:"
           " average of a column's |g - U U' g|^2 of rate beta_1; C = sqrt(rows - rank) (g - U U' g) / sqrt(p), |C| at most"
           " gamma times the last; theta -= lr * alpha * (U (m_t / (sqrt(v_t) + eps)) + alpha_c C)"),
)  # fmt: skip
