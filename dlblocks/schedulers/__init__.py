"""The catalogue of learning-rate schedulers: one entry a block.

Formulas give the factor f(t) on the optimizer's lr, for each group on its own, so that their ratios
stay. t = 0, 1, ... counts optimizer steps or epochs, as the tag `interval` says; T is the number of
optimizer steps of the whole run, which the Trainer knows, and beyond it the last value holds. W is the
number of warm-up steps.
"""

from __future__ import annotations

from typing import Any

from dlblocks.records import Block, Param

_GAMMA = Param("gamma", 0.1, "float", "factor on lr at each fall", "(0, inf)")
_WARMUP = (
    Param(
        "warmup",
        0.1,
        "float",
        "length of the warm-up: below 1 a share of all steps, from 1 on a number of steps",
        "[0, inf)",
    ),
    Param("start_factor", 0.01, "float", "the first step has lr times this", "[0, 1]"),
)
_MIN_LR_RATIO = Param("min_lr_ratio", 0.0, "float", "the floor, as a share of lr", "[0, 1]")


def _entry(name: str, target: str, *params: Param, interval: str, **about: Any) -> Block:
    tags = {"interval": interval, "needs_total": interval == "step", **about.pop("tags", {})}
    return Block(kind="scheduler", name=name, target=target, params=params, tags=tags, **about)


BLOCKS: tuple[Block, ...] = (
    _entry(
        "constant",
        "dlblocks.schedulers.curves:constant",
        interval="epoch",
        source="none: the absence of a schedule",
        summary="The learning rate stays as it is.",
        formula="1",
        note="torch's ConstantLR is a plateau of lower lr at the start",
    ),
    _entry(
        "step",
        "torch.optim.lr_scheduler:StepLR",
        Param("step_size", 10, "int", "epochs between falls", "[1, inf)"),
        _GAMMA,
        interval="epoch",
        source="torch.optim.lr_scheduler.StepLR",
        summary="Falls by a factor every so many epochs.",
        formula="gamma^floor(t / step_size)",
    ),
    _entry(
        "multistep",
        "torch.optim.lr_scheduler:MultiStepLR",
        Param("milestones", (10, 15), "ints", "the epochs at which it falls", "[1, inf)"),
        _GAMMA,
        interval="epoch",
        source="He et al. 2015, arXiv:1512.03385 (as used there)",
        summary="Falls by a factor at given epochs.",
        formula="gamma^(number of milestones <= t)",
    ),
    _entry(
        "exponential",
        "torch.optim.lr_scheduler:ExponentialLR",
        Param("gamma", 0.95, "float", "factor on lr at each epoch", "(0, inf)"),
        interval="epoch",
        source="torch.optim.lr_scheduler.ExponentialLR",
        summary="Falls by a factor every epoch.",
        formula="gamma^t",
    ),
    _entry(
        "cosine",
        "dlblocks.schedulers.curves:cosine",
        _MIN_LR_RATIO,
        interval="step",
        summary="Half a cosine from lr down to the floor at the end of the run.",
        formula="r + (1 - r) (1 + cos(pi t / T)) / 2, r = min_lr_ratio",
        source="Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts",
        note="the floor is a share of lr, as in Keras and optax; torch's eta_min is absolute, and its curve"
        " rises again after T",
    ),
    _entry(
        "one_cycle",
        "dlblocks.schedulers.one_cycle:OneCycle",
        Param("pct_start", 0.3, "float", "share of the run that rises", "[0, 1]"),
        Param("div_factor", 25.0, "float", "the first step has lr divided by this", "[1, inf)"),
        Param(
            "final_div_factor", 1e4, "float", "the last step has the first step's lr over this", "[1, inf)"
        ),
        Param("anneal_strategy", "cos", "str", "shape of rise and fall", choices=("cos", "linear")),
        Param(
            "cycle_momentum",
            False,
            "bool",
            "move momentum (or beta_1) the other way",
            origin=True,
        ),
        Param("base_momentum", 0.85, "float", "momentum at the peak of lr", "[0, 1)"),
        Param("max_momentum", 0.95, "float", "momentum at the first and the last step", "[0, 1)"),
        interval="step",
        summary="Up to lr, which is the peak, and down to almost zero, over the whole run.",
        formula="from 1 / div_factor to 1 at t = pct_start * T - 1, then to 1 / (div_factor *"
        " final_div_factor) at t = T - 1; cos: a + (b - a)(1 - cos(pi p)) / 2, linear: a + (b - a) p",
        source="Smith & Topin 2017, arXiv:1708.07120",
        note="as torch's OneCycleLR with max_lr = lr, which cycles the momentum unless told not to, also of"
        " an SGD that was asked for none, and fails beyond T and where pct_start * T = 1",
    ),
    _entry(
        "linear_warmup",
        "dlblocks.schedulers.curves:linear_warmup",
        *_WARMUP,
        interval="step",
        summary="Rises in a straight line, then stays.",
        formula="s + (1 - s) min(t / W, 1), s = start_factor",
        source="Goyal et al. 2017, arXiv:1706.02677",
        note="a warmup longer than the run ends with it",
    ),
    _entry(
        "warmup_cosine",
        "dlblocks.schedulers.curves:warmup_cosine",
        *_WARMUP,
        _MIN_LR_RATIO,
        interval="step",
        summary="Rises in a straight line, then falls as half a cosine to the floor at the end of the run.",
        formula="t < W: s + (1 - s) t / W, s = start_factor; then"
        " r + (1 - r) (1 + cos(pi (t - W) / (T - W))) / 2, r = min_lr_ratio",
        source="Goyal et al. 2017, arXiv:1706.02677; Loshchilov & Hutter 2016, arXiv:1608.03983",
        note="a warmup longer than the run ends with it",
    ),
    _entry(
        "reduce_on_plateau",
        "torch.optim.lr_scheduler:ReduceLROnPlateau",
        Param("factor", 0.1, "float", "factor on lr at each fall", "(0, 1)"),
        Param("patience", 10, "int", "epochs without progress that are borne", "[0, inf)"),
        Param("threshold", 1e-4, "float", "smaller progress is none", "[0, inf)"),
        Param(
            "threshold_mode",
            "rel",
            "str",
            "progress as a share of the best, or as it is",
            choices=("rel", "abs"),
        ),
        Param("cooldown", 0, "int", "epochs after a fall that do not count", "[0, inf)"),
        Param("min_lr", 0.0, "float", "the floor, absolute", "[0, inf)"),
        Param("eps", 1e-8, "float", "smaller falls of lr are left out, absolute", "[0, inf)"),
        interval="epoch",
        source="torch.optim.lr_scheduler.ReduceLROnPlateau",
        summary="Falls by a factor when the monitored metric has made no progress for a while.",
        formula="lr = max(factor * lr, min_lr) when more than `patience` epochs in a row brought no progress",
        note="Keras falls one epoch earlier and its threshold is absolute",
        tags={"monitor": True},
    ),
    _entry(
        "polynomial",
        "dlblocks.schedulers.decays:polynomial",
        Param("power", 1.0, "float", "1 is a straight line", "(0, inf)"),
        _MIN_LR_RATIO,
        interval="step",
        aliases=("linear",),
        source="Keras PolynomialDecay",
        summary="Falls as a power of the share of the run that is left.",
        formula="r + (1 - r) (1 - t / T)^power, r = min_lr_ratio",
        note="torch's PolynomialLR ends after 5 steps unless told otherwise",
    ),
    _entry(
        "inverse_time",
        "dlblocks.schedulers.decays:inverse_time",
        Param("decay_rate", 0.1, "float", "how fast", "[0, inf)"),
        interval="epoch",
        source="Robbins & Monro 1951; Keras InverseTimeDecay",
        summary="Falls as one over the epoch, the classic of stochastic approximation.",
        formula="1 / (1 + decay_rate * t)",
    ),
    _entry(
        "inverse_sqrt",
        "dlblocks.schedulers.decays:inverse_sqrt",
        _WARMUP[0],
        interval="step",
        aliases=("noam",),
        source="Vaswani et al. 2017, arXiv:1706.03762",
        summary="Rises in a straight line, then falls as one over the root of the step.",
        formula="t < W: (t + 1) / W; then sqrt(W / (t + 1))",
    ),
    _entry(
        "cosine_restarts",
        "dlblocks.schedulers.decays:cosine_restarts",
        Param("cycles", 3, "int", "half cosines in the run", "[1, inf)"),
        _MIN_LR_RATIO,
        interval="step",
        aliases=("sgdr",),
        source="Loshchilov & Hutter 2016, arXiv:1608.03983",
        summary="Falls as half a cosine and starts anew, several times in the run.",
        formula="r + (1 - r) (1 + cos(pi q)) / 2, q = fractional part of cycles * t / T, r = min_lr_ratio",
        note="cycles of one length that fill the run; torch's are given in steps and may grow",
    ),
    _entry(
        "warmup_stable_decay",
        "dlblocks.schedulers.decays:warmup_stable_decay",
        _WARMUP[0],
        Param("decay", 0.2, "float", "share of the run over which it falls", "(0, 1]"),
        _MIN_LR_RATIO,
        interval="step",
        aliases=("wsd", "trapezoidal"),
        source="Hu et al. 2024, arXiv:2404.06395",
        summary="Rises in a straight line, stays, and falls in a straight line at the end.",
        formula="min((t + 1) / W, 1) * (r + (1 - r) min((T - t) / (decay T), 1)), r = min_lr_ratio",
    ),
    _entry(
        "flat_cosine",
        "dlblocks.schedulers.decays:flat_cosine",
        Param("pct_start", 0.75, "float", "share of the run before it falls", "[0, 1)"),
        _MIN_LR_RATIO,
        interval="step",
        source="fastai fit_flat_cos",
        summary="Stays, then falls as half a cosine at the end.",
        formula="t < s T: 1; then r + (1 - r) (1 + cos(pi (t / T - s) / (1 - s))) / 2, s = pct_start",
    ),
    _entry(
        "rex",
        "dlblocks.schedulers.decays:rex",
        _MIN_LR_RATIO,
        interval="step",
        source="Chen et al. 2021, arXiv:2107.04197",
        summary="Falls slowly at first and fast at the end.",
        formula="r + (1 - r) (1 - p) / (1 - p / 2), p = t / T, r = min_lr_ratio",
    ),
)
