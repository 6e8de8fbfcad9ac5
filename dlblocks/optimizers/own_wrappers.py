"""The optimisers of our own that go around another one."""

from __future__ import annotations

from dlblocks.optimizers.entry import wrapper
from dlblocks.optimizers.params import eps
from dlblocks.records import Block, Param

_RHO = Param("rho", 0.05, "float", "distance of the point whose gradient is taken", "(0, inf)")
_ADAPTIVE = Param("adaptive", False, "bool", "measured in the size of each weight (ASAM, arXiv:2102.11600)")

BLOCKS: tuple[Block, ...] = (
    wrapper(
        "lookahead",
        "wrappers:Lookahead",
        Param("k", 5, "int", "steps of the base between two of the slow weights", "[1, inf)"),
        Param("alpha", 0.5, "float", "share of the way that the slow weights go", "(0, 1]"),
        summary="Several steps of another optimizer, then a part of the way.",
        formula="every k steps: slow += alpha (theta - slow); theta = slow",
        source="Zhang et al. 2019, arXiv:1907.08610",
    ),
    wrapper(
        "orthograd",
        "wrappers:OrthoGrad",
        summary="Another optimizer's step by the part of the gradient at right angles to the weights.",
        formula="g' = g - theta (theta . g) / |theta|^2 in each tensor, brought to the length of g",
        source="Prieto et al. 2025, arXiv:2501.04697",
    ),
    wrapper(
        "cautious",
        "wrappers:Cautious",
        Param("floor", 1e-3, "float", "the least mean by which the rest of the step is divided", "(0, 1]"),
        parts_decay=True,
        summary="Another optimizer's step where it agrees in sign with descent, and 0 elsewhere.",
        formula="u the base's step without decoupled decay; s = 1 where u g < 0, else 0;"
        " theta += u s / max(mean(s), floor), the mean over each tensor; decay as in the base",
        source="Liang et al. 2024, arXiv:2411.16085",
        note="divides as the authors' code does; cautious_adamw multiplies by n / (sum(s) + 1), as the paper says",
        differs_from={
            "timm": "its clamb, cadan and cadanw mask a part of the step, before the rest is added"
        },
    ),
    wrapper(
        "trac",
        "trac:TRAC",
        Param(
            "betas",
            (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
            "floats",
            "decay rates, each of a tuner of its own",
            "(0, 1)",
        ),
        Param("first", 1e-8, "float", "the order of the first scale", "(0, inf)"),
        eps(1e-8, "added to the denominators"),
        summary="Another optimizer's way from the start, times a scale that is learnt; for data that change.",
        formula="d = (theta - theta_0) / (S + eps); h = g . d over all parameters; for each beta"
        " v = beta^2 v + h^2, c = beta c - h; S = first / erfi(1 / sqrt(2)) sum erfi(c / (sqrt(2 v) + eps));"
        " theta = theta_0 + max(S, 0) (d + u), u the base's step",
        source="Muppidi et al. 2024, arXiv:2405.16642; eps and max as in the authors' code",
        note="about a hundred steps pass before it moves much; reads one number from the device each step",
    ),
    wrapper(
        "sam",
        "sharpness:SAM",
        _RHO,
        _ADAPTIVE,
        closure=True,
        summary="Another optimizer's step by the gradient at the worst point near by, for flat minima; two passes.",
        formula="e = rho g / |g|; g = gradient at theta + e; then the base's step from theta",
        source="Foret et al. 2020, arXiv:2010.01412",
    ),
    wrapper(
        "gsam",
        "sharpness:GSAM",
        _RHO,
        _ADAPTIVE,
        Param("alpha", 0.4, "float", "factor of the part at right angles", "[0, inf)"),
        closure=True,
        summary="SAM that also closes the gap between the worst loss near by and the loss; two passes.",
        formula="g_p = gradient at theta + e of sam; o = g - g_p (g . g_p) / |g_p|^2;"
        " then the base's step by g_p - alpha o",
        source="Zhuang et al. 2022, arXiv:2203.08065",
        note="rho stays as it is; the paper lets it fall with lr",
    ),
    wrapper(
        "wsam",
        "sharpness:WSAM",
        _RHO,
        _ADAPTIVE,
        Param("gamma", 0.9, "float", "weight of the sharpness", "[0, 1)"),
        Param("decouple", True, "bool", "keep the sharpness out of the base's averages"),
        closure=True,
        summary="SAM whose sharpness is a weighted penalty on the loss; two passes.",
        formula="h = gamma / (1 - gamma) (g_p - g), g_p = gradient at theta + e of sam; decouple: the base's"
        " step by g, then theta -= lr h; else the base's step by g + h",
        source="Yue et al. 2023, arXiv:2305.15817",
    ),
    wrapper(
        "looksam",
        "sharpness:LookSAM",
        _RHO,
        _ADAPTIVE,
        Param("k", 5, "int", "steps between two that take a second pass", "[1, inf)"),
        Param("alpha", 0.7, "float", "factor of the part that is kept", "[0, inf)"),
        closure=True,
        summary="SAM that looks for the worst point only every k steps, and remembers the way.",
        formula="steps 1, k + 1, ...: as sam, and v = g_p - g (g . g_p) / |g|^2, g_p its gradient;"
        " others: the base's step by g + alpha v |g| / |v|; over all parameters",
        source="Liu et al. 2022, arXiv:2203.02714",
        differs_from={"pytorch-optimizer": "takes the norms and products of each tensor alone"},
    ),
    wrapper(
        "friendly_sam",
        "sharpness:FriendlySAM",
        _RHO,
        _ADAPTIVE,
        Param("sigma", 1.0, "float", "share of the average gradient that is taken away", "[0, inf)"),
        Param("decay", 0.9, "float", "lambda, decay rate of that average", "[0, 1)"),
        closure=True,
        summary="SAM that looks along the noise of the batch alone; two passes.",
        formula="d = g - sigma m; m = lambda m + (1 - lambda) g, which starts at the first g, where d = g;"
        " e = rho d / |d|; the rest as sam",
        source="Li et al. 2024, arXiv:2403.12350; m is that before g, as in implementations of others",
    ),
)
