import io

import pytest

from vlaa_jax.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.quick
def test_plain_lines_in_a_log():
    file, times = io.StringIO(), iter([0.0, 60.0, 70.0, 80.0])
    with Progress(
        10, label="train", shown=["reward", "loss"], initial=4, file=file, clock=lambda: next(times)
    ) as progress:
        progress.step(5, {"loss": 0.123456, "reward": 0.5, "kl": 1.0})
        progress.say("checkpoint saved")
        progress.step(6, {"loss": 2})
        progress.step(7, {"reward": 1e-5})
    # 60 seconds of compilation do not enter the pace of 10 seconds a step.
    assert file.getvalue() == (
        "train 5/10 | reward 0.5 | loss 0.1235 | 01:00 passed\n"
        "checkpoint saved\n"
        "train 6/10 | loss 2 | 01:10 passed, 00:40 left\n"
        "train 7/10 | reward 1e-05 | 01:20 passed, 00:30 left\n"
    )


@pytest.mark.quick
def test_a_bar_on_a_terminal():
    file = Terminal()
    with Progress(10, label="train", shown=["reward"], initial=4, file=file) as progress:
        progress.step(5, {"reward": 0.5})
        progress.say("checkpoint saved")
        progress.step(10, {"reward": 0.75})
    assert "\r" in file.getvalue()
    assert "checkpoint saved\n" in file.getvalue()
    assert "10/10" in file.getvalue() and "reward 0.75" in file.getvalue()
