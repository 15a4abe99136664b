"""What a verifier says about one answer, and what the router says about one completion."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One verifier's judgement of one answer text.

    Attributes:
      valid: whether exactly one answer could be taken from the text.
      normal_form: the answer as the verifier read it; empty when not valid.
      rule: name of the rule that decided, for logs (`equal`, `different`, `hedge`, `timeout`, ...).
      score: reward in [0, 1]; 0 when not valid.
      box_space_suspect: the box fits the gold only when it is read in another coordinate space.
    """

    valid: bool
    normal_form: str = ""
    rule: str
    score: float = 0.0
    box_space_suspect: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace(Verdict):
    """One completion's verdict with what led to it.

    Attributes:
      extracted: the text between the answer tags, stripped; None when the format gate found none.
      seconds: time that the verdict took. Left out of comparisons: equal inputs give equal traces.
    """

    extracted: str | None
    seconds: float = dataclasses.field(compare=False)


def invalid(rule: str) -> Verdict:
    """The verdict on a text from which no single answer can be taken."""
    return Verdict(valid=False, rule=rule)
