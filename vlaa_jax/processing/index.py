"""The index of a shard set: sizes of every record and, for those that cannot be used, why.

Built once with a progress bar and cached by content, tokenizer, prompt and pixel limits. Buckets, packing and skips are
functions of it, so the data set itself stays random-access and its position is one integer. A record that is too long
for the largest bucket is skipped here with a reason (`usable`); no text is ever cut to fit.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import tqdm

from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import VERIFIERS, Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.storage import cache_folder

_FORMAT = 2  # of the cached file, and of what its numbers mean
_LONGEST_PROBLEM = 300  # characters; the array of texts is as wide as its longest


@dataclasses.dataclass(frozen=True)
class Index:
    """One row a record.

    Attributes:
      prompt: prompt tokens, images expanded.
      windows: vision windows.
      completion: tokens of the reference completion with its end token.
      verifier: place in `VERIFIERS`.
      ids: record ids.
      problems: why the record cannot be used; '' for a good one.
    """

    prompt: np.ndarray
    windows: np.ndarray
    completion: np.ndarray
    verifier: np.ndarray
    ids: np.ndarray
    problems: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def good(self) -> np.ndarray:
        """Places of the records that can be used."""
        return np.flatnonzero(self.problems == "")

    def report(self, limit: int = 5) -> str:
        """One sentence on what is skipped, '' when nothing is."""
        bad = np.flatnonzero(self.problems != "")
        if not len(bad):
            return ""
        shown = "; ".join(f"{self.ids[i]}: {self.problems[i]}" for i in bad[:limit])
        return f"{len(bad)} of {len(self)} records cannot be used ({shown}{'; ...' if len(bad) > limit else ''})"


def build_index(source: RecordSource, encoder: Encoder, check: Callable[[Record], None]) -> Index:
    """Reads every record once, or the cached result.

    Only an `InputError` makes a record unusable; any other error, and a damaged shard, ends the build.

    Args:
      source: the records.
      encoder: decides token counts and window counts.
      check: raises `InputError` for a record whose gold its verifier cannot read. Called from several threads. It is no
        part of the cache's key, so it must be the same function of the record everywhere.
    """
    path = cache_folder() / f"index-{_key(source, encoder)}.npz"
    cached = _read(path, len(source))
    if cached is not None:
        return cached
    path.parent.mkdir(parents=True, exist_ok=True)

    def row(position: int) -> tuple[int, int, int, int, str, str]:
        record = source[position]
        verifier = VERIFIERS.index(record.verifier) if record.verifier in VERIFIERS else -1
        try:
            prompt, windows = encoder.sizes(record)
            check(record)
            completion = len(encoder.completion(completion_text(record.trace, record.answer)))
        except InputError as error:
            return 0, 0, 0, verifier, record.id, _problem(error, record.id)
        return prompt, windows, completion, verifier, record.id, ""

    title = f"reading {len(source)} records"
    if not sys.stderr.isatty():  # a log gets a line in place of the bar
        print(title, file=sys.stderr, flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        rows = pool.map(row, range(len(source)))
        columns = list(zip(*tqdm.tqdm(rows, total=len(source), desc=title, leave=False, disable=None), strict=True))
    integers = [np.asarray(column, np.int32) for column in columns[:4]]
    index = Index(*integers, ids=np.asarray(columns[4]), problems=np.asarray(columns[5]))
    # Other processes may build the same index: each writes a file of its own, and the last rename wins.
    temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}.partial.npz")
    np.savez_compressed(temporary, **vars(index))
    temporary.replace(path)
    return index


def usable(index: Index, keep: np.ndarray, reason: str) -> Index:
    """The index with the records outside `keep` (booleans) marked unusable for `reason`."""
    problems = np.where((index.problems == "") & ~keep, reason, index.problems)
    return dataclasses.replace(index, problems=problems)


def count_by_verifier(index: Index) -> dict[str, int]:
    """Usable records of each verifier."""
    counts = collections.Counter(index.verifier[index.good].tolist())
    return {name: counts[place] for place, name in enumerate(VERIFIERS) if counts[place]}


def places_of(index: Index, verifier: str) -> np.ndarray:
    """Where the usable records of a verifier lie in the shard set, rising."""
    return index.good[index.verifier[index.good] == VERIFIERS.index(verifier)]


def _problem(error: InputError, record_id: str) -> str:
    """The message without the record's id, which stands beside it."""
    text = str(error)
    for name in (record_id, repr(record_id)):
        text = text.removeprefix(f"record {name}: ")
    return text[:_LONGEST_PROBLEM]


def _read(path: pathlib.Path, count: int) -> Index | None:
    """The cached index, None when there is none or its file is damaged."""
    try:
        with np.load(path) as stored:
            index = Index(**{name: stored[name] for name in stored.files})
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return index if all(len(column) == count for column in vars(index).values()) else None


def _key(source: RecordSource, encoder: Encoder) -> str:
    images = encoder.images
    parts = [
        _FORMAT,
        source.fingerprint,
        encoder.tokenizer.sha256,
        encoder.prompt.sha256(encoder.tokenizer.chat_template),
        images.min_pixels,
        images.max_pixels,
        images.factor,
        dataclasses.astuple(encoder.geometry),
        encoder.image_token,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
