"""The config source that makes each block an option of its group, straight from the registry.

A `ConfigStore` node for each block would make `--help` and every swept job slower, since the store
copies deeply on each look; a search path found in YAML only would make `glob(*)` expand to nothing.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from dlblocks.hydra import BESIDE, GROUPS
from dlblocks.registry import REGISTRY

SCHEME = "dlblocks"


class BlockSource(ConfigSource):
    """Answers Hydra's questions about `dlblocks://` from the registry."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        group, name = self._split(config_path)
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found : {config_path}")
        block = REGISTRY.get(GROUPS[group], name)
        return ConfigResult(
            provider=self.provider,
            path=f"{SCHEME}://{self.path}",
            config=OmegaConf.create({"name": block.name, **block.defaults(), **BESIDE.get(group, {})}),
            header={"package": None},
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", *GROUPS)

    def is_config(self, config_path: str) -> bool:
        group, name = self._split(config_path)
        return group in GROUPS and bool(name) and REGISTRY.has(GROUPS[group], name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        group = config_path.strip("/")
        if not group:
            return sorted(GROUPS) if results_filter in (None, ObjectType.GROUP) else []
        if results_filter == ObjectType.GROUP:
            return []
        return REGISTRY.names(GROUPS[group])

    @staticmethod
    def _split(config_path: str) -> tuple[str, str]:
        group, _, name = config_path.strip("/").removesuffix(".yaml").rpartition("/")
        return group, name


class BlockSearchPath(SearchPathPlugin):
    """Adds `dlblocks://` behind the application's own folders, so that its own files win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider=SCHEME, path=f"{SCHEME}://")
