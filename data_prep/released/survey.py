"""The first pass over a released file, before any picture is decoded: what is missing, and how boxes are to be read."""

import collections
import dataclasses
import pathlib
import posixpath

import tqdm

from data_prep.released import boxes, folders, reward, thinking
from data_prep.released.reading import entries
from data_prep.released.report import Skip

_MOST_BOXES = 2000  # a source; more would say the same


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the first pass found.

    Attributes:
      entries: number of entries.
      pictures, missing: entries that name a picture, and those whose picture is not there, by folder.
      readings: how the boxes of each source with boxes are read.
    """

    entries: int
    pictures: dict[str, int]
    missing: dict[str, int]
    readings: dict[str, boxes.Reading]


def survey(path: pathlib.Path, converter: thinking.Converter | reward.Converter) -> Survey:
    """Reads the file once.

    Args:
      path: the released file.
      converter: of its entries.
    """
    count = 0
    pictures, missing = collections.Counter(), collections.Counter()
    known: dict[str, bool] = {}
    samples: dict[str, list[tuple[boxes.Numbers, boxes.Size]]] = collections.defaultdict(list)
    for entry in tqdm.tqdm(entries(path), desc="looking through", unit=" records", leave=False, disable=None):
        count += 1
        try:
            picture = converter.picture(entry)
            if picture not in known:
                known[picture] = folders.is_missing(converter.folder, picture)
            folder = posixpath.dirname(picture)
            pictures[folder] += 1
            missing[folder] += known[picture]
            if isinstance(converter, thinking.Converter) and not known[picture]:
                source, numbers = converter.box(entry) or ("", None)
                if numbers and len(samples[source]) < _MOST_BOXES:
                    samples[source].append((numbers, folders.picture_size(converter.folder, picture)))
        except Skip:  # the second pass says so
            continue
    readings = {source: boxes.measure(found) for source, found in sorted(samples.items()) if found}
    return Survey(count, dict(pictures), dict(+missing), readings)
