"""Which questions share their words: overlap of word n-grams, as GPT-3 looked for contamination (appendix C).

Words are lower-cased runs of letters and digits, so punctuation does not count; 13 of them in a row make a gram. What
differs for questions about pictures:

* A question shorter than a gram is compared as a whole, and only where one of the two has no picture. "How many balls
  are left?" is asked of thousands of pictures: there the picture decides.
* A gram in questions about more than 10 different pictures, training and evaluation together, is boilerplate (GPT-3
  has: in more than 10 documents): a template, an instruction on the form of the answer. It is not counted at all.
  Templates with few variants still meet by chance: 29 pairs of 3,000 and 600 questions of the demo.
"""

import collections
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WORDS = 13  # of a gram
SHARE = 0.5  # of a question's grams, from which on it counts as the same question
BOILERPLATE = 10  # pictures

# In scripts without spaces a character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


class Question(NamedTuple):
    """A question and the pictures it is asked about, by any name that is the same for the same picture."""

    text: str
    pictures: tuple[bytes, ...] = ()


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation and marks of pictures."""
    return _WORD.findall(unicodedata.normalize("NFKC", text.replace("<image>", " ")).casefold())


def grams(text: str, size: int = WORDS) -> set[str]:
    """Runs of `size` words; all words where there are fewer."""
    found = words(text)
    return {" ".join(found[start : start + size]) for start in range(max(len(found) - size, 0) + 1)} - {""}


def overlaps(
    train: Sequence[Question], against: Sequence[Question], *, size: int = WORDS, share: float = SHARE
) -> Iterator[tuple[int, int, float]]:
    """Pairs of a training and an evaluation question that share at least `share` of the latter's grams.

    Yields:
      Places in `train` and `against`, and the share, in the order of `against`.
    """
    own = [grams(question.text, size) for question in against]
    about: dict[str, set[object]] = collections.defaultdict(set)  # by gram: what it is asked about, on both sides
    for question, found in zip(against, own, strict=True):
        for gram in found:
            about[gram].add(question.pictures or question.text)
    holders: dict[str, list[int]] = collections.defaultdict(list)  # by gram: places in `train`
    for place, question in enumerate(train):
        for gram in grams(question.text, size) & about.keys():
            if len(about[gram]) <= BOILERPLATE:  # beyond, who else holds it does not matter
                about[gram].add(question.pictures or question.text)
                holders[gram].append(place)
    boilerplate = {gram for gram, subjects in about.items() if len(subjects) > BOILERPLATE}
    for target, question in enumerate(against):
        telling = own[target] - boilerplate
        shared = collections.Counter(place for gram in telling & holders.keys() for place in holders[gram])
        whole = len(words(question.text)) < size
        for place, count in sorted(shared.items()):
            if count >= share * len(telling) and not (whole and question.pictures and train[place].pictures):
                yield place, target, count / len(telling)
