"""Fields of an entry as the formats need them; whatever is wrong with one costs its record."""

import ast
import json
import math
from typing import Any

from data_prep.released.report import FIELD, Skip

LONGEST_QUESTION = 50_000  # characters
LONGEST_TEXT = 500_000
LONGEST_META = 500_000  # of one that is evaluated: Python's own parser needs some hundred times as much memory


def text(fields: dict[str, Any], name: str, longest: int = LONGEST_TEXT) -> str:
    """A text that must be there.

    Raises:
      Skip: it is missing, blank, too long, no text, or no valid Unicode text.
    """
    value = fields.get(name)
    if not isinstance(value, str):
        raise Skip(FIELD, f"{name} is missing" if value is None else f"{name} must be text, found {_shown(value)}")
    if not value.strip():
        raise Skip(FIELD, f"{name} is blank")
    return checked(value, name, longest)


def checked(value: str, name: str, longest: int = LONGEST_TEXT) -> str:
    """The text itself.

    Raises:
      Skip: it is too long, or holds NUL characters or half a surrogate pair.
    """
    if len(value) > longest:
        raise Skip(FIELD, f"{name} has {len(value)} characters, at most {longest} are taken")
    if "\0" in value:
        raise Skip(FIELD, f"{name} holds a NUL character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise Skip(FIELD, f"{name} holds half a surrogate pair, which is no Unicode text")
    return value


def gold(fields: dict[str, Any]) -> str:
    """`gt` as text, '' for none: a text, a number, four numbers of a box, or a list of one of these.

    Raises:
      Skip: it is anything else.
    """
    value = fields.get("gt")
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if value is None:
        return ""
    if isinstance(value, str):
        return checked(value, "gt").strip()
    if _is_number(value):
        return json.dumps(value)
    if isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)):
        return json.dumps(value)
    raise Skip(FIELD, f"gt must be a text, a number or a box, found {_shown(value)}")


def meta(value: Any) -> tuple[dict[str, Any], bool]:
    """`meta` as a dictionary, whether it is one or the text of a Python one; and whether it could be read.

    One that could not is kept as text, under `text`: nothing that training needs depends on it.
    """
    if value is None:
        return {}, True
    found = value
    if isinstance(value, str) and len(value) <= LONGEST_META:
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            found = None
    try:
        if isinstance(found, dict):
            return json.loads(json.dumps(found, sort_keys=True, allow_nan=False)), True
    except (ValueError, TypeError, RecursionError):
        pass
    return {"text": str(value)[:LONGEST_META]}, False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return repr(value)[:60]
