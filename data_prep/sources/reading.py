"""From a publisher's records to drafts: what every source checks, and what it does with a record that fails."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data_prep.drafts import Draft, SetAside
from data_prep.sources.entries import Entry
from vlaa_jax.errors import InputError

STEP = "read"
LONGEST_TEXT = 100_000  # characters; a question of a source has at most a few thousand

# Half a surrogate pair is no Unicode text and cannot be stored.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_PATIENCE = 100  # records of another form before a file is given up
_SHOWN = 300  # characters of a record or of what is wrong with it


def read_entries(
    source: str,
    entries: Iterable[Entry],
    required: Sequence[str],
    identify: Callable[[Entry], str],
    to_draft: Callable[[Entry, str], Draft],
) -> Iterator[Draft | SetAside]:
    """A draft or a reason for each entry, in their order.

    Args:
      source: its name.
      entries: of its files.
      required: names of the fields that every record of this form has.
      identify: the id, of an entry with these fields; raises InputError.
      to_draft: the draft, of an entry and its id; raises InputError.

    Raises:
      InputError: no entry, or none of the first hundred, has the required fields.
    """
    return _first_of_each_picture(_of_one_form(source, entries, required, identify, to_draft))


def _of_one_form(
    source: str,
    entries: Iterable[Entry],
    required: Sequence[str],
    identify: Callable[[Entry], str],
    to_draft: Callable[[Entry, str], Draft],
) -> Iterator[tuple[Entry, Draft | SetAside]]:
    """What becomes of each entry; nothing before one has the form."""
    first: Entry | None = None
    held: list[tuple[Entry, SetAside]] | None = []
    for entry in entries:
        first = first or entry
        missing = [name for name in required if name not in entry.fields]
        if not missing and held is not None:
            yield from held
            held = None
        problem = entry.problem or (f"missing field: {', '.join(missing)}" if missing else "")
        if not problem:
            yield entry, _read_entry(source, entry, identify, to_draft)
        elif held is None:
            yield entry, _set_aside(source, entry, problem)
        else:
            held.append((entry, _set_aside(source, entry, problem)))
            if len(held) == _PATIENCE:
                break
    if held is not None:
        raise InputError(_mismatch(first, required))


def _mismatch(first: Entry | None, required: Sequence[str]) -> str:
    if first is None:
        return "the files hold no record"
    if first.problem:
        return f"{first.place}: {first.problem}; expected an object with {', '.join(required)}"
    shown = {name: value for name, value in first.fields.items() if not isinstance(value, bytes)}
    found = ", ".join(first.fields) or "none"
    return (
        f"{first.place}: expected the fields {', '.join(required)}, found {found} in the first record: "
        f"{str(shown)[:_SHOWN]}"
    )


def _read_entry(
    source: str, entry: Entry, identify: Callable[[Entry], str], to_draft: Callable[[Entry, str], Draft]
) -> Draft | SetAside:
    name, draft = "", None
    try:
        name = identify(entry)
        draft = to_draft(entry, name)
        _check_gold(draft)
    except InputError as error:
        return _set_aside(source, entry, str(error), name, draft)
    return draft


def _set_aside(source: str, entry: Entry, reason: str, name: str = "", draft: Draft | None = None) -> SetAside:
    return SetAside(name or entry.place, source, STEP, f"{reason[:_SHOWN]} ({entry.place})", draft)


def _first_of_each_picture(results: Iterable[tuple[Entry, Draft | SetAside]]) -> Iterator[Draft | SetAside]:
    """Sets aside what asks about a picture again.

    The paper keeps unique pictures of each source (section 2, step 1), and its counts say so: DocVQA's 10,194 originals
    are the training pages of that set, not its 39,463 questions. Which question about a picture is kept is not stated:
    here the first.
    """
    owners: dict[str, str] = {}  # of pictures
    ids: set[str] = set()
    for entry, result in results:
        if isinstance(result, Draft):
            picture, owner = entry.picture or result.image, entry.group or result.id
            if owners.get(picture, owner) != owner or (picture in owners and result.id in ids):
                result = _set_aside(
                    result.source, entry, f"repeated picture: {owners[picture]} has it", result.id, result
                )
            elif result.id in ids:
                result = _set_aside(result.source, entry, "repeated id", result.id, result)
            else:
                owners[picture] = owner
                ids.add(result.id)
        yield result


def _check_gold(draft: Draft) -> None:
    """Of all but mathematics, which takes a process of its own; the build does that."""
    from vlaa_jax.processing.records import Record
    from vlaa_jax.rewards import check_gold

    record = Record(
        draft.id, (b"",), draft.question, draft.gold, draft.verifier, choices=draft.choices, box_space=draft.box_space
    )
    if draft.verifier != "math":
        try:
            check_gold(record)
        except InputError as error:
            raise InputError(f"unreadable gold: {error.__cause__}") from None  # without the name of the record


def text(value: Any, name: str) -> str:
    """`value` without blanks around it.

    Args:
      value: of a field.
      name: of the field, for messages.

    Raises:
      InputError: it is no text, blank, too long, or has control characters.
    """
    if not isinstance(value, str):
        raise InputError(f"wrong type: {name} must be text, found {type(value).__name__}")
    if len(value) > LONGEST_TEXT:
        raise InputError(f"too long: {name} has {len(value):,} characters, at most {LONGEST_TEXT:,} are read")
    if _CONTROL.search(value):
        raise InputError(f"control characters: in {name}")
    if not value.strip():
        raise InputError(f"blank text: {name}")
    return value.strip()


def name_part(value: Any, name: str) -> str:
    """A publisher's id as part of ours: a number, or text with its slashes replaced."""
    if type(value) is int and abs(value) < 10**18:
        return str(value)
    part = text(value, name).replace("/", "-")
    if len(part) > 200 or not part.isprintable():
        raise InputError(f"unusable id: {name} is {part[:50]!r}")
    return part


def texts(value: Any, name: str) -> list[str]:
    """Texts of a list that is not empty, as `text` has them."""
    if not isinstance(value, list):
        raise InputError(f"wrong type: {name} must be a list of texts, found {type(value).__name__}")
    if not value:
        raise InputError(f"empty list: {name}")
    return [text(item, name) for item in value]


def turns(conversations: Any) -> list[tuple[str, str]]:
    """Questions and answers of a LLaVA conversation, without the marks for the picture, which stands first.

    Raises:
      InputError: it is none, or its turns are not those of a person and of a model by turns.
    """
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise InputError("wrong type: conversations must be a list of objects with from and value")
    speakers = [turn.get("from") for turn in conversations]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise InputError(f"turns out of order: from is {str(speakers)[:60]}, expected human and gpt by turns")
    values = [text(text(turn.get("value"), "value").replace("<image>", ""), "value") for turn in conversations]
    return list(zip(values[::2], values[1::2], strict=True))


def only_turn(conversations: Any) -> tuple[str, str]:
    """As `turns`, of a conversation with one question."""
    found = turns(conversations)
    if len(found) != 1:
        raise InputError(f"several questions: the conversation has {len(found)}, expected one")
    return found[0]
