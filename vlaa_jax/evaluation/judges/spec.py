"""How a judge is named on a command line and in a config."""

from typing import NamedTuple

from vlaa_jax.errors import InputError

HEADS = ("process", "outcome", "untrained")
LIKELIHOOD, RUBRIC, CLASS = "likelihood", "rubric", "class"
SPECS = "process:DIR, outcome:DIR, untrained:DIR, likelihood, likelihood:DIR, rubric:MODEL or class:MODULE:CLASS"


class Spec(NamedTuple):
    """A name in its parts.

    Attributes:
      kind: of `HEADS`, `likelihood`, `rubric` or `class`.
      place: DIR, MODEL or MODULE:CLASS; '' for the likelihood of the policy that is evaluated.
    """

    kind: str
    place: str


def read_spec(text: str) -> Spec:
    """Raises `InputError` unless `text` is one of `SPECS`."""
    kind, _, place = text.partition(":")
    if (kind in (*HEADS, RUBRIC, LIKELIHOOD, CLASS) and place) or text == LIKELIHOOD:
        return Spec(kind, place)
    raise InputError(f"judge {text!r}: expected {SPECS}")
