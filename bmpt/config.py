"""The config of a run: all sections together, read from a YAML file and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from bmpt.settings import (
    DataSettings,
    EvalSettings,
    MethodSettings,
    ModelSettings,
    RunSettings,
    TextSettings,
    TrainSettings,
)
from shards.config import Settings, load_settings
from shards.config_names import find_config, name_of_config
from shards.fetching.frames import ReadSettings

DEFAULT_METHOD = "bmpt"
EXPERIMENTS = "experiments"  # the folder of `configs/` whose files `bmpt train` takes by name

# Settings that decide how fast and from where data arrives, but not which data: they are not part
# of the identity of a run.
_FETCHING = {"num_workers", "max_failures", *ReadSettings.model_fields}


def _validate_method(values: Any) -> Any:
    """Validate the section `method` as the settings model of the method that it names."""
    # pydantic words the errors of other types, and of keys such as YAML's `on`, which is True.
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        return values
    # Imported here, since the methods import torch: commands that load no config start at once.
    from bmpt.methods import validate_method_settings

    return validate_method_settings({"name": DEFAULT_METHOD, **values})


class RunConfig(Settings):
    """Everything that decides the numbers of a run."""

    seed: int = Field(0, ge=0, description="seed of the order, the clips, new weights and dropout")
    run: RunSettings = RunSettings()
    data: DataSettings
    model: ModelSettings = ModelSettings()
    text: TextSettings = TextSettings()
    method: Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_validate_method)] = Field(
        default_factory=lambda: _validate_method({})
    )
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()

    @property
    def scored_manifests(self) -> tuple[str, ...]:
        """Return the manifests to score: `eval.manifests`, else `data.val`, else none."""
        if self.eval.manifests:
            return self.eval.manifests
        return () if self.data.val is None else (self.data.val,)


def identity(config: RunConfig, *, with_places: bool) -> dict[str, Any]:
    """Return the settings that make two configs the same run.

    The run folder, the number of threads, and the way a step is spread over workers are left out.

    Args:
        config: The config.
        with_places: Whether to include where the pool and the weights are stored. Both have hashes
            of their own, so results leave the places out and are the same bytes wherever they are
            computed.
    """
    # Micro-batches decide no number unless the method says so.
    excluded: Any = {"run": True, "data": _FETCHING}
    if not config.method.traits.depends_on_batch:
        excluded["train"] = {"accumulation"}
    if not with_places:
        excluded |= {"data": {"pool", *_FETCHING}, "model": {"pretrained"}}
    return config.model_dump(mode="json", exclude=excluded)


def load_config(address: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config; without `run.dir`, the run folder is `runs/<name>`.

    Args:
        address: Path of a YAML file, or name of an experiment that ships with the project. The
            `base:` parents of the file are read first.
        overrides: Settings as `a.b=c`, applied in order on top of the file.

    Raises:
        ConfigError: The message names the file, the key and the value.
    """
    path = find_config(address, EXPERIMENTS, listed_by="`bmpt experiments`")
    config = load_settings(RunConfig, path, overrides)
    if config.run.dir is not None:
        return config
    run = config.run.model_copy(update={"dir": f"runs/{name_of_config(path, EXPERIMENTS)}"})
    return config.model_copy(update={"run": run})
