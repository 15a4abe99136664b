"""COCO and VisualGenome in LLaVA-CoT-100k: `train.jsonl` and the pictures of `image.zip`.

A line has `id`, `image` (`coco/train2017/...`, `vg/VG_100K/...`) and `conversations`, whose answers have four stages,
<SUMMARY>, <CAPTION>, <REASONING>, <CONCLUSION>. Its questions on these pictures are those of LLaVA's mixture.

Boxes are fractions of the picture *padded to a square* with the picture in its middle, as LLaVA's mixture has them
(LLaVA's issues 606, 623 and 1833). A policy that sees the picture itself cannot know of the padding, so every box of
question, reasoning and conclusion is converted to fractions of the picture.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

from data_prep import pictures
from data_prep.drafts import Draft, SetAside
from data_prep.sources.entries import Entry, find_file, read_json
from data_prep.sources.reading import name_part, read_entries, text, turns
from vlaa_jax.errors import InputError

_FIELDS = ("id", "image", "conversations")
_STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
_NUMBER = r"\s*(\d+(?:\.\d+)?|\.\d+)\s*"
_BOX = re.compile(rf"\[{','.join([_NUMBER] * 4)}\]")
_DECIMALS = 3
# Of the padded square: what two decimals lose, and as much again.
_SLACK = 0.01


def read_coco(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Questions for a box about COCO's pictures; see `_read`."""
    yield from _read(folder, "coco")


def read_vg(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Questions for a box about VisualGenome's pictures; see `_read`."""
    yield from _read(folder, "vg")


def _read(folder: pathlib.Path, source: str) -> Iterator[Draft | SetAside]:
    """Every turn of a conversation that asks for a bounding box, with the set's own answer as distilled.

    The paper scores both sources by the overlap of boxes, so turns that ask for anything else are set aside. All turns
    of a conversation are kept, not only the first about its picture: the paper's 3,000 originals a source became 10,727
    and 40,242 samples. Records of other sub-folders are passed over.

    Raises:
      InputError: the folder or its files are not of this form, or no record is of this source.
    """

    def identify(entry: Entry) -> str:
        return f"{source}-{name_part(entry.fields['id'], 'id')}-{entry.fields['turn']}"

    def to_draft(entry: Entry, name: str) -> Draft:
        question, answer = entry.fields["question"], entry.fields["answer"]
        if "bounding box" not in question.casefold() or _BOX.search(question):
            raise InputError("no box asked for: another kind of question")
        stages = _stages(answer)
        image = entry.fields["image"]
        address = pictures.locate(folder, (image, f"images/{image}", f"image/{image}"))
        size = pictures.size(folder, address)
        stages = {stage: unpad_boxes(content, size) for stage, content in stages.items()}
        boxes = [match[0] for match in _BOX.finditer(stages["CONCLUSION"])]
        if len(boxes) != 1:
            raise InputError(f"no single box: the conclusion has {len(boxes)}")
        thought = "\n\n".join(stages[stage] for stage in _STAGES[:-1])
        return Draft(
            id=name,
            source=source,
            image=address,
            question=question,
            gold=boxes[0],
            verifier="iou",
            box_space="normalised",
            caption=stages["CAPTION"],
            distilled=f"<think>\n{thought}\n</think>\n\n{stages['CONCLUSION']}",
            metadata={"origin": entry.place, "boxes": "fractions of the padded square, converted"},
        )

    path = find_file(folder, ("train.jsonl",))
    yield from read_entries(source, _asked(path, source), _FIELDS, identify, to_draft)


def _asked(path: pathlib.Path, source: str) -> Iterator[Entry]:
    """An entry a turn of the source's conversations; what is none comes as it is."""
    found, others = False, set()
    for entry in read_json(path):
        image = entry.fields.get("image")
        if not all(name in entry.fields for name in _FIELDS):
            yield entry
        elif not isinstance(image, str):
            yield dataclasses.replace(entry, problem=f"wrong type: image must be text, found {type(image).__name__}")
        elif (home := image.partition("/")[0]) != source:
            others.add(home[:50])
        else:
            found = True
            yield from _turns(entry)
    if not found and others:
        raise InputError(f"{path}: no record whose image is in {source}/; found {', '.join(sorted(others)[:20])}")


def _turns(entry: Entry) -> Iterator[Entry]:
    try:
        text(entry.fields["image"], "image")
        found = turns(entry.fields["conversations"])
    except InputError as error:
        yield dataclasses.replace(entry, problem=str(error))
        return
    for number, (question, answer) in enumerate(found, 1):
        fields = entry.fields | {"turn": number, "question": question, "answer": answer}
        yield Entry(f"{entry.place}, turn {number}", fields, group=entry.place)


def _stages(answer: str) -> dict[str, str]:
    """The four stages of an answer that is nothing else."""
    found, rest = {}, answer.strip()
    for stage in _STAGES:
        before, opened, rest = rest.partition(f"<{stage}>")
        content, closed, rest = rest.partition(f"</{stage}>")
        if before.strip() or not opened or not closed:
            raise InputError(f"not in stages: {', '.join(_STAGES)} expected in this order and nothing between")
        found[stage] = text(content, stage)
    if rest.strip():
        raise InputError("not in stages: text after the conclusion")
    return found


def unpad_boxes(content: str, size: tuple[int, int]) -> str:
    """Text with its boxes `[left, top, right, bottom]` as fractions of the picture, three decimals.

    Args:
      content: with boxes as fractions of the square that the picture was padded to.
      size: width and height of the picture in pixels.

    Raises:
      InputError: a box lies outside the picture by more than its decimals explain.
    """
    side = max(size)
    edges = [(side - length) // 2 for length in size]

    def convert(match: re.Match[str]) -> str:
        numbers = []
        for index, number in enumerate(match.groups()):
            length, edge = size[index % 2], edges[index % 2]
            value, slack = (float(number) * side - edge) / length, _SLACK * side / length
            if not -slack <= value <= 1 + slack:
                raise InputError(f"box outside the picture: {match[0][:80]} of the square around {size[0]} x {size[1]}")
            numbers.append(round(min(max(value, 0.0), 1.0), _DECIMALS))
        return f"[{', '.join(f'{number:g}' for number in numbers)}]"

    return _BOX.sub(convert, content)
