"""Whole recipes in Python."""

from __future__ import annotations

from typing import Any

from dlblocks.hydra import register


def compose(*overrides: str, config_name: str = "train") -> dict[str, Any]:
    """The recipe that the command line would run, as plain values for `dlblocks.train`.

    Raises:
        UserError: an override that doesn't fit, with the nearest legal name.

    >>> compose("activation=elu", "activation.alpha=0.5")["activation"]
    {'name': 'elu', 'alpha': 0.5}
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dlblocks.errors import UserError
    from dlblocks.hydra.explain import explain
    from dlblocks.hydra.plain import plain

    register()
    try:
        with initialize_config_module("dlblocks.conf", version_base="1.3"):
            config = hydra_compose(config_name, overrides=list(overrides))
        return plain(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides, "pkg://dlblocks.conf", config_name)) from error
