"""Which arrays of a step are alive while which of its programs runs: what must fit a chip's memory at once."""

from collections.abc import Collection, Mapping

# Of a GRPO step, in the order in which they run; SFT and reward models have the last two. The judges are those of
# `config.rewards.scorer` and `config.rewards.process`, where these name a model.
PROGRAMS = (
    "reshard",
    "reshard_layer",
    "vision",
    "prefill",
    "decode",
    "judge_answers",
    "judge_steps",
    "deal",
    "log_probabilities",
    "update",
    "apply",
)

SCORE = "score"  # of a reward model's held-out steps, between its updates

# Arrays that live through a part of a step: first and last program. Those of `ALWAYS` outlive it.
ALWAYS = ("weights", "moments", "reference", "answer judge", "step judge")
# Of these, those that may wait in the host's memory: the program that they are brought in for.
_WAITS_FOR = {"reference": "log_probabilities", "answer judge": "judge_answers", "step judge": "judge_steps"}
LIFETIMES: Mapping[str, tuple[str, str]] = {
    "sampling weights": ("reshard_layer", "decode"),
    "patches": ("vision", "vision"),  # up to `apply` where the vision tower trains
    "prompts": ("vision", "apply"),
    "features": ("vision", "apply"),  # up to `decode` where the vision tower trains
    "caches": ("prefill", "decode"),  # of the prompts being answered, and of the completions under way
    "completions": ("prefill", "apply"),
    "judged answers": ("judge_answers", "judge_answers"),
    "judged steps": ("judge_steps", "judge_steps"),
    "scores": ("deal", "apply"),
    "micro-batches": ("deal", "apply"),  # all of one optimizer update
    "gradient": ("update", "apply"),
}


def is_alive(name: str, program: str, *, freeze_vision: bool = True, waiting: Collection[str] = ()) -> bool:
    """Whether arrays exist on the chips while a program runs; what it makes itself is not counted.

    Args:
      name: of the arrays.
      program: one of `PROGRAMS`, or `SCORE`.
      freeze_vision: whether patches have served once there are features.
      waiting: arrays that are brought from the host's memory when they are used.
    """
    if name in waiting:
        return program == _WAITS_FOR[name]
    if name in ALWAYS:
        return True
    if SCORE in (name, program):  # what is scored is named like the program
        return name == program
    first, last = LIFETIMES[name]
    if name == "patches" and not freeze_vision:
        last = "apply"
    if name == "features" and not freeze_vision:
        last = "decode"
    return PROGRAMS.index(first) <= PROGRAMS.index(program) <= PROGRAMS.index(last)
