"""A new method is a class with its settings, a line in the table, and a config."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import yaml
from pydantic import Field

from bmpt.clip.backbone import Backbone
from bmpt.clip.precision import unit
from bmpt.engine.train import Trainer
from bmpt.methods import METHODS
from bmpt.methods.base import COSINE, ClipInputs, Features, Group, Method
from bmpt.settings import MethodSettings, MethodTraits
from bmpt.task import open_task
from shards.errors import ConfigError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import checkpoint_of, folder_of, results_of, run
from tests.bmpt.tiny import ALONE, losses_of


class ShiftSettings(MethodSettings):
    """Settings of the method below."""

    name: str = "shift"
    strength: float = Field(1.0, gt=0)

    @property
    def traits(self) -> MethodTraits:
        """Return the traits: the backbone stays frozen."""
        return MethodTraits(tunes=("prompts",))


class Shift(Method):
    """CLIP whose clip features are shifted by a trained vector."""

    settings: ShiftSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: ShiftSettings,
        *,
        num_frames: int,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, settings, num_frames=num_frames, classes=classes)
        self.shift_D = torch.nn.Parameter(torch.zeros(backbone.joint_width))

    def encode_clips(self, inputs: ClipInputs) -> Features:
        """Return shifted unit features [B, V, D]."""
        plain_BVD = super().encode_clips(inputs)[COSINE]
        return {COSINE: unit(plain_BVD + self.settings.strength * self.shift_D)}

    def trained_groups(self) -> dict[str, Group]:
        """Return the vector."""
        return {"shift_D": "head"}


def test_a_new_method_is_a_class_with_settings_a_line_and_a_config(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line in the table is all that the rest of the code needs: the method trains, stops, resumes
    and is scored, and its checkpoint, config and results name it."""
    monkeypatch.setitem(METHODS, "shift", (Shift, ShiftSettings))
    method = {"name": "shift", "strength": 2.0}
    train = {"epochs": 8, "lr_head": 0.01}
    settings = config(method=method, train=train)
    assert run(settings).results is not None
    losses = [loss for _, loss in losses_of(folder_of(settings))]
    assert sum(losses[-2:]) < sum(losses[:2])
    assert results_of(settings)["method"] == "shift"
    assert checkpoint_of(settings).keys() == {"shift_D"}
    stored = yaml.safe_load((folder_of(settings) / "config.yaml").read_text())["method"]
    assert stored["strength"] == 2.0
    assert "exchange" not in stored

    again = config(run="again", method=method, train=train)
    trainer = Trainer(open_task(again, ALONE, trains=True), folder_of(again))
    folder_of(again).mkdir()
    assert not trainer.run(wants_stop=lambda: True)
    assert run(again).results is not None
    assert losses_of(folder_of(again)) == losses_of(folder_of(settings))


def test_keys_of_a_new_method_are_its_own(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "shift", (Shift, ShiftSettings))
    with pytest.raises(ConfigError, match=r"method\.exchange: method shift has no such key"):
        config(method={"name": "shift", "exchange": "none"})
    with pytest.raises(ConfigError, match=r"method\.strength: .* it belongs to shift; leave it"):
        config(method={"name": "bmpt", "strength": 1.0})
