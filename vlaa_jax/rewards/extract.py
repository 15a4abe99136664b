r"""From a completion to one answer text: the format gate, and the decorations every verifier looks through.

The gate follows "Mixed reward" of VLAA-Thinking (section 4.1): no separate format reward; a completion from which no
answer can be taken scores 0. The paper does not say what "can be taken" means: here it is exactly one answer block.
"""

import re
import unicodedata

_STRICT = re.compile(r"\s*<think>(?P<think>.*)</think>\s*<answer>.*</answer>\s*", re.DOTALL)
# Characters that compatibility normalisation would turn into plain digits and so into another number: 5³ is not 53.
_KEPT = ("<super>", "<sub>", "<fraction>", "<circle>")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{")


def answer_text(completion: str, *, strict: bool = False) -> tuple[str | None, str]:
    """Applies the format gate.

    Args:
      completion: decoded text up to the first end token, tags included.
      strict: also demands one non-blank `<think>` block before the answer block and nothing else around the two.

    Returns:
      (the stripped text between the tags, '') or (None, the name of the rule that was broken).
    """
    opened, closed = completion.count("<answer>"), completion.count("</answer>")
    if not opened or not closed:
        return None, "no_answer"
    if opened > 1 or closed > 1:
        return None, "several_answers"
    start, end = completion.index("<answer>") + len("<answer>"), completion.index("</answer>")
    if start > end:
        return None, "tags_out_of_order"
    if strict:
        match = _STRICT.fullmatch(completion)
        one_block = completion.count("<think>") == 1 and completion.count("</think>") == 1
        if match is None or not one_block or not match["think"].strip():
            return None, "not_strict"
    text = completion[start:end].strip()
    return (text, "") if normalise(text) else (None, "blank")


def normalise(text: str) -> str:
    """NFKC (full-width digits, thin spaces), Unicode minus as '-', invisible characters removed, stripped.

    Superscripts, subscripts, vulgar fractions and circled digits stay as they are: as plain digits they would be
    another number.
    """
    kept = []
    for character in text:
        if unicodedata.category(character) == "Cf":
            continue
        if not unicodedata.decomposition(character).startswith(_KEPT):
            character = unicodedata.normalize("NFKC", character)
        kept.append(character)
    return "".join(kept).replace("\N{MINUS SIGN}", "-").strip()


def closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the group whose content begins at `start`, or -1."""
    depth = 1
    for index in range(start, len(text)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return index
    return -1


def unwrap(text: str) -> str:
    r"""Takes off what merely decorates a whole answer: `$ $`, `\( \)`, `\[ \]`, `\boxed{}`, `\text{}`, `** **`, a final
    period, white space. A part that does not span the whole text stays: `\boxed{3} or \boxed{4}` is left alone."""
    while True:
        before = text
        text = text.strip().removesuffix(".").rstrip()
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and len(text) > len(left + right) and left not in inner:
                text = inner
        command = _COMMAND.match(text)
        if command and closing_brace(text, command.end()) == len(text) - 1:
            text = text[command.end() : -1]
        if text == before:
            return text
