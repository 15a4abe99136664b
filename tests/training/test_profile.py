"""A trace of two steps of a tiny run, and the flag that asks for it."""

import jax
import pytest
from test_resume import start

from vlaa_jax.errors import InputError
from vlaa_jax.training.profile import profiled_steps


@pytest.mark.quick
def test_the_flag_names_steps():
    assert list(profiled_steps("10,2")) == [10, 11]
    for value in ("", "3", "0,1", "1,0", "-1,2", "1,2,3", "a,b", "1.5,2", " 1,2"):
        with pytest.raises(InputError, match=r"^--profile is '.*': expected STEP,N, two whole numbers above 0"):
            profiled_steps(value)


def test_a_trace_names_steps_phases_and_what_ran_on_the_device(folder):
    """In a process of its own: the profiler and a libtpu that has compiled for a topology do not go together."""
    late = start(folder, "profiled", others=("--profile=4,2",), steps=4)
    assert (late.returncode, late.stderr.splitlines()[-1]) == (
        2,
        "error: --profile ends with step 5, but this run has 4",
    )
    run = start(folder, "profiled", others=("--profile=2,2",), steps=4)
    assert run.returncode == 0, run.stderr
    (trace,) = (folder / "profiled" / "profile").rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(trace))
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    assert {dict(event.stats)["step_num"] for event in events if event.name == "step"} == {2, 3}
    phases = {"data", "rollout", "decode_text", "verify", "score", "deal", "reference", "update", "summarise", "write"}
    assert phases <= {event.name for event in events}
    programs = trace.read_bytes()  # they lie in it as a whole, with the scopes of every operation
    names = ("prefill", "decode_rows", "group_log_probabilities", "/language/", "jvp(loss)", "/optimizer/")
    assert not [name for name in names if name.encode() not in programs]
