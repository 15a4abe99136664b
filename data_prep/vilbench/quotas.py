"""How many questions each source has in the benchmark (ViLBench, Table 2), and which ones these are."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from vlaa_jax.errors import InputError

PUBLISHED = {"MMStar": 150, "MathVista": 150, "MathVerse": 100, "MMMU-Pro": 100, "RealWorldQA": 100}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A question that may be taken.

    Attributes:
      id: of its record.
      source: of its record.
      indicator: how much it prefers process rewards.
    """

    id: str
    source: str
    indicator: float


def read_quotas(text: str) -> dict[str, int]:
    """Reads `SOURCE=NUMBER,...`; nothing gives the published ones.

    Raises:
      InputError: the text is not of this form, or names a source twice.
    """
    if not text:
        return dict(PUBLISHED)
    quotas: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        if not key(name) or not number.strip().isdecimal() or not int(number):
            raise InputError(f"--quotas: {part!r}, expected SOURCE=NUMBER, with commas between several")
        if key(name) in map(key, quotas):
            raise InputError(f"--quotas: {name.strip()} is named twice")
        quotas[name.strip()] = int(number)
    return quotas


def key(source: str) -> str:
    """A source's name without case, blanks and marks: `MMMU Pro` and `mmmu_pro` are the same."""
    return "".join(filter(str.isalnum, source.casefold()))


def choose(candidates: Sequence[Candidate], quotas: Mapping[str, int]) -> dict[str, list[Candidate]]:
    """The questions with the highest indicator of each source; where it is the same, the smaller id comes first.

    Args:
      candidates: of any sources; those of sources without a quota are left out.
      quotas: by source.

    Returns:
      By source, in the quotas' order, falling.

    Raises:
      InputError: a source has fewer candidates than its quota.
    """
    by_source: dict[str, list[Candidate]] = collections.defaultdict(list)
    for candidate in candidates:
        by_source[key(candidate.source)].append(candidate)
    chosen = {}
    for source, quota in quotas.items():
        own = by_source[key(source)]
        if len(own) < quota:
            raise InputError(
                f"{source} has {len(own)} candidates for a quota of {quota}: expected as many at least, or another "
                "number in --quotas"
            )
        chosen[source] = sorted(own, key=lambda candidate: (-candidate.indicator, candidate.id))[:quota]
    return chosen


def check_counts(counts: Mapping[str, int], quotas: Mapping[str, int]) -> None:
    """Raises InputError unless each source has as many questions as its quota, and no other source has any."""
    found = collections.Counter({source: 0 for source in quotas})
    for source, count in counts.items():
        found[next((name for name in quotas if key(name) == key(source)), source)] += count
    if dict(found) != dict(quotas):
        listed = lambda numbers: ", ".join(f"{name} {count}" for name, count in numbers.items())  # noqa: E731
        raise InputError(f"found {listed(found)}; expected {listed(quotas)} (--quotas says what is expected)")
