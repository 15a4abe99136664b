"""What the paper says of each source (VLAA-Thinking, table 1 and figure 4): kinds, rewards and counts."""

import dataclasses
from typing import Literal

# Own: the source brings captions. None: the reasoner gets the problem in words. As is: steps 2 to 4 are skipped. RL
# only: steps 2 to 6 are skipped.
Route = Literal["caption", "own_caption", "no_caption", "as_is", "rl_only"]


@dataclasses.dataclass(frozen=True)
class Published:
    """One source.

    Attributes:
      title: for people.
      question_type: `closed` or `open`.
      verifier: of its records.
      route: which steps it goes through.
      folder: its images' folder in the released archive, and in the released files' image paths; the prefix of its ids
        but for COCO and VisualGenome.
      original, pipeline, sft, rl: numbers of samples; None where the table has a dash.
    """

    title: str
    question_type: Literal["closed", "open"]
    verifier: str
    route: Route
    folder: str
    original: int | None
    pipeline: int | None
    sft: int | None
    rl: int


PUBLISHED = {
    "clevr_math": Published("CLEVR-Math", "closed", "digit", "caption", "clevr_math", 35_000, 28_018, 5_923, 2_000),
    "geoqa170k": Published("GeoQA170K", "closed", "mcq", "rl_only", "geoqa170k", None, None, None, 6_499),
    "synthesis": Published(
        "Math PUMA (Synthesis)", "closed", "math", "no_caption", "synthesis", 30_000, 26_672, 19_258, 6_696
    ),
    "arxivqa": Published("ArxivQA", "closed", "mcq", "caption", "arxivqa", 54_399, 51_348, 34_604, 1_000),
    "docvqa": Published("DocVQA", "closed", "open_ended", "caption", "docvqa", 10_194, 8_206, 4_897, 1_000),
    "vizwiz": Published("VizWiz", "closed", "open_ended", "caption", "vizwiz", 20_523, 6_528, 4_266, 1_000),
    "allava_laion": Published(
        "ALLaVA-LAION", "open", "open_ended", "own_caption", "allava_laion", 47_066, 18_123, 10_496, 3_000
    ),
    "coco": Published("LLaVA-CoT COCO", "closed", "iou", "as_is", "coco", 3_000, 3_000, 8_727, 2_000),
    "vg": Published("LLaVA-CoT VisualGenome", "closed", "iou", "as_is", "vg", 3_000, 3_000, 38_242, 2_000),
}
