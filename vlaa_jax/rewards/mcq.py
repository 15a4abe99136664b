r"""The multiple-choice verifier: option letters, single and multi-select, compared as sets.

What counts as one answer:

* letters alone: `B`, `(b)`, `B.`, `B)`, `\text{B}`, `**B**`, `Option B`, `\boxed{B}`, `The answer is B`; several as
  `AC`, `C, A`, `A and C`, `A C`. Lower case is accepted letter by letter, but not run together ('ac', 'bad' are words);
* a letter with its option's own text: `B. 12`, `A. 12, C. 15`;
* one letter with other text after a delimiter, `B. because ...`, as long as that text has no 'or', no other option's
  letter and no other option's text: it must commit to one option.

The option's text alone is no answer: the letter was asked for. `A or B` and `A/B` are hedges and not valid; a list of
all options is a set like any other and so wrong unless it is the gold.
"""

import re
import string
from collections.abc import Sequence

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.extract import normalise
from vlaa_jax.rewards.verdict import Verdict, invalid

_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\\[()\[\]]|[$*`\"]")
_LEAD = re.compile(
    r"(?:the\s+)?(?:correct\s+|final\s+|best\s+)?(?:answers?|options?|choices?)\b(?:\s+(?:is|are)\b)?\s*[:=]?\s*",
    re.IGNORECASE,
)
_ITEM = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_LETTER_WITH_TEXT = re.compile(r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])\s*[).:\-])[).:\-]?\s*(.+)", re.DOTALL)
_OR = re.compile(r"\bor\b", re.IGNORECASE)


def read(text: str, choices: Sequence[str] = ()) -> tuple[frozenset[str] | None, str]:
    """The chosen letters in upper case.

    Args:
      text: an answer or a gold.
      choices: the options' texts in letter order; empty when unknown, then every letter is an option.

    Returns:
      (letters, '') or (None, the rule that was broken: `hedge`, `not_an_option`, `no_option`).
    """
    options = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    texts = {letter: _plain(choice) for letter, choice in zip(options, choices, strict=False)}
    plain = _plain(text)
    lead = _LEAD.match(plain)
    while lead:
        plain = plain[lead.end() :]
        lead = _LEAD.match(plain)
    for letter, own in texts.items():
        if own:  # `B. 12`, `(B) 12`, `B 12` -> `B`, when 12 is what B says
            label = rf"(?<!\w)[(\[]?{letter}(?:[)\].:\-]+\s*|\s+[:\-]?\s*)"
            plain = re.sub(rf"{label}(?i:{re.escape(own)})(?!\w|\.\d)", letter, plain)
    letters = _letters(plain)
    if letters is None:
        letters = _committed_letter(plain, options, texts)
    if letters is None:
        return None, "hedge" if _OR.search(plain) or "/" in plain else "no_option"
    if not letters <= set(options):
        return None, "not_an_option"
    return letters, ""


def read_gold(gold: str, choices: Sequence[str] = ()) -> frozenset[str]:
    """As `read`; raises InputError."""
    letters, rule = read(gold, choices)
    if letters is None:
        among = f"options A to {string.ascii_uppercase[len(choices) - 1]}" if choices else "option letters"
        raise InputError(f"gold answer {gold!r} does not name {among} ({rule})")
    return letters


def check_choices(choices: Sequence[str]) -> None:
    """Raises InputError unless there are 2 to 26 options, none of them blank."""
    if not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise InputError(f"`choices` has {len(choices)} options, a multiple-choice question needs 2 to 26")
    if any(not choice.strip() for choice in choices):
        raise InputError("`choices` has a blank option")


def judge(answer: str, gold: str, choices: Sequence[str] = ()) -> Verdict:
    """1 when answer and gold name the same set of options, else 0; no partial credit."""
    expected = read_gold(gold, choices)
    letters, rule = read(answer, choices)
    if letters is None:
        return invalid(rule)
    equal = letters == expected
    form = "".join(sorted(letters))
    return Verdict(valid=True, normal_form=form, rule="equal" if equal else "different", score=float(equal))


def _plain(text: str) -> str:
    """Text without LaTeX text commands, math delimiters, bold and quotes; single spaces; no final period."""
    text = normalise(text)
    while (inner := _COMMAND.sub(r"\1", text)) != text:
        text = inner
    text = " ".join(_DECORATION.sub("", text).split())
    return text.removesuffix(".").strip()


def _letters(plain: str) -> frozenset[str] | None:
    """Letters of a text that is nothing but a list of them, else None."""
    found: set[str] = set()
    for token in re.split(r"[\s,;&]+", plain):
        item = _ITEM.fullmatch(token)
        if item:
            found.add(item[1].upper())
        elif re.fullmatch(r"[A-Z]{2,}", token):
            found.update(token)
        elif token.casefold() not in ("", "and", "both", "option", "options"):
            return None
    return frozenset(found) or None


def _committed_letter(plain: str, options: str, texts: dict[str, str]) -> frozenset[str] | None:
    """The letter of `B. some text` when the text stays with that one option, else None."""
    match = _LETTER_WITH_TEXT.fullmatch(plain)
    if match is None:
        return None
    letter, tail = match[1] or match[2] or match[3], match[4]
    if _OR.search(tail):
        return None
    for other in options:
        if other == letter:
            continue
        own = texts.get(other, "")
        if re.search(rf"(?<!\w){other}(?!\w)", tail):
            return None
        if own and re.search(rf"(?<!\w)(?i:{re.escape(own)})(?!\w)", tail):
            return None
    return frozenset(letter)
