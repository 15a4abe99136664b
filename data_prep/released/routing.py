"""Which source an entry came from, and which verifier it gets (VLAA-Thinking, table 1 and figure 4)."""

import dataclasses
import re
from typing import Any

from data_prep.sources.published import PUBLISHED

# How ids and image paths begin, beside the folders of `PUBLISHED`. GeoQA170K's come from two collections.
_SOURCE_ALIASES = {
    "allava": "allava_laion",
    "geoqa_plus": "geoqa170k",
    "geo3k": "geoqa170k",
    "geo170k": "geoqa170k",
    "visualgenome": "vg",
    "vg_100k": "vg",
    "vg_100k_2": "vg",
    "train2017": "coco",
}
_SOURCES = {source.folder: key for key, source in PUBLISHED.items()} | _SOURCE_ALIASES
_ID = re.compile(rf"({'|'.join(sorted(_SOURCES, key=len, reverse=True))})(?![a-z0-9])", re.IGNORECASE)

# `verifier_type`: `digit`, `math` and `mcq` were seen in the released file, the other names are guesses.
_VERIFIER_ALIASES = {
    "digit": ("digit", "number", "numeric", "count", "counting"),
    "mcq": ("mcq", "mc", "multiple_choice", "multi_choice", "choice", "option", "letter"),
    "math": ("math", "math_verify", "maths", "latex", "expression"),
    "iou": ("iou", "box", "bbox", "bounding_box", "grounding", "detection"),
    "open_ended": (
        *("open_ended", "openended", "open", "open_end", "free_form", "general", "general_reasoning", "reasoning"),
        *("reward_model", "rm", "vqa", "qa", "text"),
    ),
}
_VERIFIERS = {alias: verifier for verifier, aliases in _VERIFIER_ALIASES.items() for alias in aliases}

UNKNOWN_VERIFIER = "unknown verifier_type"
OTHER_VERIFIER = "verifier_type differs from the source's"
OTHER_SOURCE = "image folder differs from the id's source"


@dataclasses.dataclass(frozen=True)
class Route:
    """Where an entry belongs.

    Attributes:
      source: key of `PUBLISHED`, '' when unknown.
      verifier: of the record, '' when unknown.
      remarks: disagreements and unknown names, for the report.
    """

    source: str
    verifier: str
    remarks: tuple[tuple[str, str], ...] = ()


def route(identity: str, image: str, verifier_type: Any = None) -> Route:
    """Source by the id's beginning, else by the image's folder; verifier by `verifier_type`, else by the source.

    Args:
      identity: the entry's id, '' for none.
      image: its picture's address.
      verifier_type: of the entry, None for none.
    """
    remarks = []
    by_id, by_folder = _source_of_id(identity), _source_of_folder(image)
    source = by_id or by_folder
    if by_id and by_folder and by_id != by_folder:
        remarks.append((OTHER_SOURCE, f"{by_folder}, id {by_id}"))
    own = PUBLISHED[source].verifier if source else ""
    named = ""
    if verifier_type not in (None, ""):
        name = re.sub(r"\W+|_+", "_", str(verifier_type)[:100].strip().casefold()).strip("_")
        named = _VERIFIERS.get(name) or _VERIFIERS.get(name.removesuffix("_reward").removesuffix("_verifier"), "")
        if not named:
            remarks.append((UNKNOWN_VERIFIER, str(verifier_type)[:100]))
        elif own and named != own:
            remarks.append((OTHER_VERIFIER, f"{named}, {source} has {own}"))
    return Route(source, named or own, tuple(remarks))


def _source_of_id(identity: str) -> str:
    match = _ID.match(identity)
    return _SOURCES[match[1].lower()] if match else ""


def _source_of_folder(image: str) -> str:
    folders = [folder.lower() for folder in image.split("/")[:-1]]
    return next((_SOURCES[folder] for folder in folders if folder in _SOURCES), "")
