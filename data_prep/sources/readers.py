"""The table of readers: one for each source of `published.PUBLISHED`."""

import pathlib
from collections.abc import Callable, Iterator

from data_prep.drafts import Draft, SetAside
from data_prep.sources.allava import read_allava_laion
from data_prep.sources.arxivqa import read_arxivqa
from data_prep.sources.docvqa import read_docvqa
from data_prep.sources.llava_cot import read_coco, read_vg
from data_prep.sources.math_puma import read_synthesis
from data_prep.sources.onevision import read_clevr_math, read_geoqa170k
from data_prep.sources.vizwiz import read_vizwiz
from vlaa_jax.errors import InputError

Reader = Callable[[pathlib.Path], Iterator[Draft | SetAside]]

READERS: dict[str, Reader] = {
    "clevr_math": read_clevr_math,
    "geoqa170k": read_geoqa170k,
    "synthesis": read_synthesis,
    "arxivqa": read_arxivqa,
    "docvqa": read_docvqa,
    "vizwiz": read_vizwiz,
    "allava_laion": read_allava_laion,
    "coco": read_coco,
    "vg": read_vg,
}


def read_source(name: str, folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Every question of a source, in the order of its files, as a draft or with the reason why not.

    Args:
      name: key of `READERS`.
      folder: as the publisher ships it; the reader's module says which files it needs.

    Raises:
      InputError: no such source or folder, or the files are not of the publisher's form; names the source and the file.
    """
    if name not in READERS:
        raise InputError(f"unknown source {name!r}, expected one of {', '.join(READERS)}")
    if not folder.is_dir():
        raise InputError(f"source {name}: {folder} is not a folder")
    try:
        yield from READERS[name](folder)
    except InputError as error:
        raise InputError(f"source {name}: {error}") from None
