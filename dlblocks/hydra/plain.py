"""From a composed config to plain values."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, all interpolations resolved."""
    recipe = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(recipe, dict)
    return {str(key): value for key, value in recipe.items()}
