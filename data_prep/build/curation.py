"""Step 6: which records go to SFT and which to RL (VLAA-Thinking, section 2 and appendix A.2)."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

from data_prep.build.steps import split_thinking
from data_prep.drafts import Draft
from data_prep.sources.published import PUBLISHED
from vlaa_jax.errors import InputError

Split = Literal["sft", "rl"]
Searched = Literal["whole", "think"]
DisjointBy = Literal["id", "image"]

# Appendix A.2. They are looked for as substrings, as published: `against`, `await` and `checked` count.
AHA = ("wait", "again", "double-check", "hmm", "mistake", "alternatively", "check", "i should confirm")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What curation needs to know of a draft.

    Attributes:
      id, source, image: as in the draft.
      aha: whether its distilled answer has an aha moment.
    """

    id: str
    source: str
    image: str
    aha: bool


def has_aha(text: str) -> bool:
    """The published rule, on a distilled answer."""
    lowered = text.lower()
    return any(word in lowered for word in AHA)


def candidate(draft: Draft, searched: Searched) -> Candidate:
    """A draft as curation sees it.

    Args:
      draft: verified.
      searched: part of the distilled answer that the rule is applied to.
    """
    parts = split_thinking(draft.distilled)
    text = parts[0] if searched == "think" and parts else draft.distilled
    return Candidate(draft.id, draft.source, draft.image, has_aha(text))


def rank(seed: int, id: str) -> str:
    """Place in the order of every draw: that of the build's seed, and of nothing else in the build."""
    return hashlib.sha256(f"{seed}:{id}".encode("utf-8", "surrogatepass")).hexdigest()


def choose(
    candidates: Iterable[Candidate],
    quotas: Mapping[str, Mapping[Split, int]],
    *,
    seed: int,
    disjoint_by: DisjointBy,
) -> tuple[dict[str, Split], dict[str, str]]:
    """Divides the verified questions into SFT and RL.

    Without aha moment a question is for SFT, with one for RL; of a source that is for RL only, all are. Then each
    source's quotas are drawn, RL first.

    Args:
      candidates: of all sources, in any order.
      quotas: of each source, most records of each split.
      seed: of the draw.
      disjoint_by: what the splits may not share: `id`, which they cannot, or `image`: then questions for SFT about a
        picture of the RL split are left out.

    Returns:
      The split of those chosen by id, and why each other one was left out.

    Raises:
      InputError: an id occurs twice.
    """
    pools = collections.defaultdict(list)
    seen = set()
    for one in candidates:
        if one.id in seen:
            raise InputError(f"the id {one.id!r} occurs twice among the verified questions")
        seen.add(one.id)
        split = "rl" if one.aha or PUBLISHED[one.source].route == "rl_only" else "sft"
        pools[split, one.source].append(one)
    chosen, left = {}, {}
    pictures = set()
    for split, source in sorted(pools):  # `rl` comes first
        allowed = []
        for one in sorted(pools[split, source], key=lambda one: rank(seed, one.id)):
            if split == "sft" and disjoint_by == "image" and (source, one.image) in pictures:
                left[one.id] = "its picture is in the RL split"
            else:
                allowed.append(one)
        quota = quotas[source][split]
        chosen.update((one.id, split) for one in allowed[:quota])
        left.update((one.id, f"beyond the quota of {quota:,} for {split.upper()}") for one in allowed[quota:])
        if split == "rl":
            pictures.update((source, one.image) for one in allowed[:quota] if one.image)
    return chosen, left
