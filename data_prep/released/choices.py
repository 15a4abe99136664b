r"""Options of a multiple-choice question, from its text: `Choices:\nA: 3°\nB: 4°`, `A) yes\nB) no`, `(A) 1 (B) 2`."""

import re

# One style of label each; a full stop also ends sentences, so it needs white space behind it.
_LABELS = (r"\(([A-Z])\)", r"([A-Z])\)", r"([A-Z]):", r"([A-Z])\.(?=\s)")
_STYLES = tuple(re.compile(rf"(?<!\S){label}[ \t]*") for label in _LABELS)


def parse(question: str) -> tuple[str, ...]:
    """Texts of the options in letter order; empty where the question lists fewer than two.

    Labels of one style follow each other from A. Of several lists the last counts: a question may mention options
    before it lists them. An option ends where the next begins, the last one with its line.
    """
    lists = [labels for style in _STYLES for labels in _lists(list(style.finditer(question))) if len(labels) >= 2]
    if not lists:
        return ()
    labels = max(lists, key=lambda labels: labels[0].start())
    ends = [label.start() for label in labels[1:]]
    texts = [question[label.end() : end].strip() for label, end in zip(labels, ends, strict=False)]
    return (*texts, question[labels[-1].end() :].split("\n", 1)[0].strip())


def _lists(labels: list[re.Match[str]]) -> list[list[re.Match[str]]]:
    """Runs A, B, C, ...; labels between that do not fit belong to an option's text."""
    lists: list[list[re.Match[str]]] = []
    waiting: dict[str, list[re.Match[str]]] = {}  # for their next letter
    for label in labels:
        letter = label[1]
        if letter == "A":
            lists.append([])
        elif letter not in waiting:
            continue
        own = lists[-1] if letter == "A" else waiting.pop(letter)
        own.append(label)
        waiting[chr(ord(letter) + 1)] = own
    return lists
