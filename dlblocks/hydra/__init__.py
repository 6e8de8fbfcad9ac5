"""dlblocks in Hydra applications: one call, `register()`, gives them the block groups.

After it, `defaults: [activation: elu]`, overrides such as `activation.alpha=0.5`, sweeps with
`activation=glob(*)`, help and completion work in the calling application, and in no other.
"""

from __future__ import annotations

from typing import Any

from dlblocks.rules import KEY

# Config group -> kind of block whose names are its options.
GROUPS = {
    "activation": "activation",
    "init": "initializer",
    "bias_init": "initializer",
    "loss": "loss",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
}
# What a group has beside the parameters of its blocks.
BESIDE: dict[str, dict[str, Any]] = {"init": {KEY: None}}


def register() -> None:
    """Make the block groups known to Hydra in this process. Calling it again changes nothing."""
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    from dlblocks.hydra.source import BlockSearchPath, BlockSource
    from dlblocks.runs import new_folder

    Plugins.instance().register(BlockSource)
    Plugins.instance().register(BlockSearchPath)
    OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
