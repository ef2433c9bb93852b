"""Runs of several configs by the ranks of one torchrun, whose start costs seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bmpt.config import RunConfig, load_config
from bmpt.engine.train import Trainer
from bmpt.run import run_evaluation, run_training
from bmpt.runtime.distributed import World, leave_world, start_world
from bmpt.task import open_task


def stop_after_a_step(config: RunConfig, world: World) -> None:
    """What SIGTERM in the first step leaves."""
    trainer = Trainer(open_task(config, world, trains=True), Path(str(config.run.dir)))
    assert not trainer.run(wants_stop=lambda: True)
    assert trainer.state.step == 1


def main(jobs: Path) -> None:
    """Do what a JSON list says: [config, "train" or "stop"], or [config, a checkpoint to score]."""
    world = start_world(threads=1)
    for path, what in json.loads(jobs.read_text(encoding="utf-8")):
        config = load_config(Path(path))
        if what == "stop":
            stop_after_a_step(config, world)
        elif what == "train":
            run_training(config, world)
        else:
            run_evaluation(config, world, checkpoint=Path(what))
    leave_world(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
