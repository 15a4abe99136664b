"""Files in the layout of the released ones, small or of the published make-up, and their pictures."""

import json
import random
import sys

from PIL import Image

from data_prep.released.reward import PUBLISHED_REWARD
from data_prep.sources.published import PUBLISHED

PICTURES = 5  # a folder; many records share one
FOLDERS = {source.folder: source.folder for source in PUBLISHED.values()} | {
    "coco": "coco/train2017",
    "vg": "vg/VG_100K",
    "allava_laion": "allava_laion/images",
}
REWARD_FOLDERS = {
    "mavis_geometry": "MAVIS_Geometry",
    "geoqa170k": "geoqa170k",
    "clevr_math": "CLEVR-Math",
    "a_okvqa": "aokvqa",
    "scienceqa": "ScienceQA",
}
QUESTIONS = {
    "digit": "Subtract {} balls. How many objects are left?",
    "mcq": "Figure {}: what is it?\nChoices:\nA: a line\nB: a bar\nC: a pie\nD: a map\nAnswer with the letter.",
    "math": "The function y = a * sin({} * x) is drawn. What is the function's equation?",
    "iou": "Please provide the bounding box coordinate of the region this sentence describes: object {}",
    "open_ended": "What does line {} say?",
}


def write_lines(path, entries):
    """JSON Lines; a text is a line as it is."""
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_pictures(folder, names=None, size=(8, 6)):
    """One-colour pictures: those named, or `PICTURES` in every folder of VLAA-Thinking."""
    names = names or [f"{inside}/{number}.png" for inside in FOLDERS.values() for number in range(PICTURES)]
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = (place % 256, place // 256, len(name) % 256)
        Image.new("RGB", size, colour).save(folder / name, "PNG" if name.endswith("png") else "JPEG")


def sft_entry(source, number=0, gold=None):
    """An entry of the SFT file as it is known from its readers."""
    entry = PUBLISHED[source]
    gold = gold or _gold(entry.verifier, number)
    return {
        "image": f"{FOLDERS[entry.folder]}/{number % PICTURES}.png",
        "question": QUESTIONS[entry.verifier].format(number),
        "answer": f"<think>\nStep {number}: look at it.\n</think>\n\n<answer> \\[ \\boxed{{{gold}}} \\] </answer>",
    }


def rl_entry(source, number=0, gold=None, verifier_type=None):
    """An entry of the RL file as it is known from its readers."""
    entry = PUBLISHED[source]
    prefix = "" if source in ("coco", "vg") else {"allava_laion": "allava-"}.get(source, f"{source}-")
    return {
        "id": f"{prefix}{number}",
        "image": f"{FOLDERS[entry.folder]}/{number % PICTURES}.png",
        "question": QUESTIONS[entry.verifier].format(number),
        "gt": gold or _gold(entry.verifier, number),
        "verifier_type": verifier_type or entry.verifier,
        "caption": "A drawing.",
        "meta": {"ds_answer": f"<think>\nIt is {number}.\n</think>\n\nSo.", "rationale": "none"},
    }


def _gold(verifier, number):
    return {
        "digit": str(number % 10),
        "mcq": "ABCD"[number % 4],
        "math": f"y = {number % 7 + 2} \\sin(x)",
        "iou": "[0.1, 0.2, 0.7, 0.5]",
        "open_ended": f"line {number}",
    }[verifier]


def published_entries(column, seed=0):
    """All entries of the published make-up of a column of table 1, `sft` or `rl`, in random order."""
    make = {"sft": sft_entry, "rl": rl_entry}[column]
    sources = [name for name, entry in PUBLISHED.items() for _ in range(getattr(entry, column) or 0)]
    random.Random(seed).shuffle(sources)
    return (make(source, number) for number, source in enumerate(sources))


def reward_entry(source, question=0, index=0, value=0.5):
    """An entry of ViLReward-73K; a question is its picture and its text."""
    return {
        "index": index,
        "image_path": f"{REWARD_FOLDERS[source]}/{question % PICTURES}.jpg",
        "question": f"Question {question}?",
        "process": f"Step 1: look. Step 2: count to {index}.",
        "value": value,
    }


def published_rewards(seed=0):
    """All entries of the published make-up of ViLReward-73K."""
    entries = []
    for source, entry in PUBLISHED_REWARD.items():
        entries += [(source, number % entry.questions) for number in range(entry.records)]
    random.Random(seed).shuffle(entries)
    return (reward_entry(source, question, index) for index, (source, question) in enumerate(entries))


def main(folder):
    """`python released_files.py FOLDER`: the three files at their published sizes, to try the commands on."""
    import pathlib

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    write_pictures(folder / "images")
    names = [f"{inside}/{number}.jpg" for inside in REWARD_FOLDERS.values() for number in range(PICTURES)]
    write_pictures(folder / "reward_images", names)
    write_lines(folder / "VLAA-Thinking-SFT-126K.json", published_entries("sft"))
    write_lines(folder / "VLAA-Thinking-GRPO-25K.json", published_entries("rl"))
    write_lines(folder / "vilreward_73k_train.json", published_rewards())


if __name__ == "__main__":
    main(sys.argv[1])
