"""`launch/tpu_train.py` with a made-up reward, killed where the environment says; `test_resume.py` starts it.

RESUMABLE_END is `WHERE:TIMES:SIGNAL`: at the given call of a function the process sends itself the signal. In place of
a signal `InputError` raises one there.
"""

import importlib
import os
import pathlib
import runpy
import signal
import zlib
from collections.abc import Callable

import vlaa_jax.rewards
from vlaa_jax.errors import InputError
from vlaa_jax.rewards import Trace
from vlaa_jax.training import settings

# Places of a step at which a process may die: before it, between its updates, around its lines and its checkpoint.
PLACES = {
    "before a rollout": ("vlaa_jax.rollout.generate", "Generator.start", "before"),
    "as records are read": ("vlaa_jax.training.settings", "open_records", "before"),
    "as answers are judged": ("vlaa_jax.training.experience", "Collector._judge", "before"),
    "before an update": ("vlaa_jax.training.updates", "Updater.first", "before"),
    "before the samples": ("vlaa_jax.training.run_folder", "RunFolder.write_samples", "before"),
    "after the samples": ("vlaa_jax.training.run_folder", "RunFolder.write_samples", "after"),
    "after the metrics": ("vlaa_jax.training.run_folder", "RunFolder.write_metrics", "after"),
    "as a save begins": ("vlaa_jax.training.checkpoint", "Checkpoints.save", "after"),
    "before the report": ("vlaa_jax.training.run_report", "_curves", "before"),
}


def made_up_rewards(requests, **_):
    """Rewards that random text gets too, and that differ inside a group: a share of the text's checksum."""
    scores = [zlib.crc32(request.completion.encode("utf-8", "replace")) % 5 / 4 for request in requests]
    return [Trace(valid=True, rule="made up", score=score, extracted="", seconds=0.0) for score in scores]


def end_at(place: str, times: int, end: Callable[[], None]) -> None:
    """Calls `end` at call `times` of a place."""
    module_name, name, moment = PLACES[place]
    owner = importlib.import_module(module_name)
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == times and moment == "before":
            end()
        result = original(*args, **kwargs)
        if calls == times and moment == "after":
            end()
        return result

    setattr(owner, name, wrapped)


def fail() -> None:
    raise InputError("made to fail")


if __name__ == "__main__":
    vlaa_jax.rewards.score_many = made_up_rewards
    settings.enable_compilation_cache = lambda directory: None  # that of all tests stays
    if os.environ.get("RESUMABLE_END"):
        place, times, name = os.environ["RESUMABLE_END"].split(":")
        end = fail if name == "InputError" else lambda: os.kill(os.getpid(), getattr(signal, name))
        end_at(place, int(times), end)
    runpy.run_path(str(pathlib.Path(__file__).parents[2] / "launch" / "tpu_train.py"), run_name="__main__")
