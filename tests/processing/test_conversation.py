"""The conversation, word for word."""

import dataclasses

import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import INSTRUCTIONS, completion_text, load_prompt
from vlaa_jax.processing.records import VERIFIERS, Record

pytestmark = pytest.mark.quick

SYSTEM = (
    "You solve questions about images. Look at what is shown, reason about it step by step, then answer. Write the "
    "reasoning between <think> and </think> and the final answer between <answer> and </answer>."
)
IMAGE = {"type": "image"}


def text(content):
    return {"type": "text", "text": content}


def user(record, prompt=None):
    """Content of the user's message."""
    system, message = (prompt or load_prompt()).messages(record)
    assert system == {"role": "system", "content": SYSTEM}
    assert message["role"] == "user"
    return message["content"]


def rendered(content):
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


ONE = "<|vision_start|><|image_pad|><|vision_end|>"
EXAMPLES = [
    (
        Record("d", (b"",), "How many 3s are there?", "2", "digit"),
        ONE + "How many 3s are there?\nAnswer with a single integer.",
    ),
    (
        Record("m", (b"", b""), "Is <image> larger than <image> ?\nA. yes\nB. no", "B", "mcq", ("yes", "no")),
        f"Is {ONE} larger than {ONE} ?\nA. yes\nB. no\nAnswer with the option's letter.",
    ),
    (
        Record("f", (b"",), "Which fraction is even? \n", r"\frac{1}{2}", "math"),
        ONE + "Which fraction is even?\nAnswer in LaTeX.",
    ),
    (
        Record("b", (b"",), "Where is the 7?", "[1, 2, 3, 4]", "iou", box_space="pixels"),
        ONE + "Where is the 7?\nAnswer with one box [x1, y1, x2, y2] in pixels of the image.",
    ),
    (
        Record("n", (b"",), "Where is the 7?", "[0, 0, 1, 1]", "iou", box_space="normalised"),
        ONE + "Where is the 7?\nAnswer with one box [x1, y1, x2, y2] in fractions of the image's width and height.",
    ),
    (
        Record("t", (b"",), "Where is the 7?", "[0, 0, 9, 9]", "iou", box_space="thousand"),
        ONE + "Where is the 7?\nAnswer with one box [x1, y1, x2, y2] in thousandths of the image's width and height.",
    ),
    (Record("o", (b"",), "Describe the picture. ", "Two 3s.", "open_ended"), ONE + "Describe the picture. "),
    (Record("x", (), "1 + 1?", "2", "digit"), "1 + 1?\nAnswer with a single integer."),
]


@pytest.mark.parametrize(("record", "content"), EXAMPLES, ids=[record.id for record, _ in EXAMPLES])
def test_whole_text_of_each_verifier(tokenizer, record, content):
    assert tokenizer.chat(load_prompt().messages(record)) == rendered(content)


def test_every_verifier_has_an_example_and_an_instruction():
    assert {record.verifier for record, _ in EXAMPLES} == set(VERIFIERS) == set(INSTRUCTIONS)


def test_images_stand_at_their_marks_or_before_the_question():
    record = Record("r", (b"", b""), "First <image>then<image>", "1", "open_ended")
    assert user(record) == [text("First "), IMAGE, text("then"), IMAGE]
    assert user(dataclasses.replace(record, question="Same?")) == [IMAGE, IMAGE, text("Same?")]
    assert user(dataclasses.replace(record, question="<image><image>Same?")) == [IMAGE, IMAGE, text("Same?")]
    ends_with_an_image = dataclasses.replace(record, question="<image>against <image>", verifier="digit")
    assert user(ends_with_an_image)[2:] == [IMAGE, text("\nAnswer with a single integer.")]


@pytest.mark.parametrize(
    ("images", "question"), [(0, "<image>?"), (1, "<image><image>"), (2, "<image> one"), (3, "<image><image>")]
)
def test_wrong_number_of_marks_names_the_record(images, question):
    record = Record("scene-7", (b"",) * images, question, "1", "digit")
    with pytest.raises(
        InputError, match=rf"record scene-7: .* {question.count('<image>')} <image> marks for {images} "
    ):
        load_prompt().messages(record)


@pytest.mark.parametrize(
    "asks",
    [
        "Answer with the option's letter from the given choices directly.",
        "Please answer directly with the letter of the correct option.",
        "Respond with just the letter of your choice.",
        "Select the letter that stands before the right answer.",
        "provide the correct option letter, e.g., A, B, C, D, at the end",
        "Answer with the option's letter.",
    ],
)
def test_a_question_that_asks_for_the_letter_is_left_alone(asks):
    """The wordings of GeoQA's templates and their like."""
    question = f"AB = 3. Find AC.\nChoices:\nA: 4\nB: 5\n{asks}"
    assert user(Record("g", (), question, "A", "mcq")) == [text(question)]


@pytest.mark.parametrize("question", ["What does the letter say?\nA. hi", "Give the sum.\nThe letter A stands for 4."])
def test_a_letter_that_is_not_asked_for_changes_nothing(question):
    assert user(Record("g", (), question, "A", "mcq")) == [text(f"{question}\nAnswer with the option's letter.")]


@pytest.mark.parametrize("record", [record for record, _ in EXAMPLES if record.verifier != "open_ended"])
def test_no_instruction_stands_twice(record):
    (last,) = [part["text"] for part in user(record)[-1:]]
    instruction = last.rpartition("\n")[2]
    again = dataclasses.replace(record, question=f"{instruction} {record.question}")
    parts = "".join(part.get("text", "") for part in user(again))
    assert parts.count(instruction) == 1


def test_custom_system_and_instructions(tmp_path):
    file = tmp_path / "system.txt"
    file.write_text("\n  Sei kurz: größer.\n\n", encoding="utf-8")
    prompt = load_prompt(
        str(file), {"math": r"Put it in \boxed{} {now}.", "open_ended": "Briefly.", "iou": "In {space}!"}
    )
    assert prompt.system == "Sei kurz: größer."
    last = lambda record: prompt.messages(record)[1]["content"][-1]["text"]  # noqa: E731
    assert last(Record("m", (), "x?", "1", "math")) == "x?\nPut it in \\boxed{} {now}."
    assert last(Record("o", (), "x?", "1", "open_ended")) == "x?\nBriefly."
    assert last(Record("i", (), "x?", "1", "iou", box_space="pixels")) == "x?\nIn pixels of the image!"
    assert last(Record("d", (), "x?", "1", "digit")) == "x?\nAnswer with a single integer."


def test_bad_prompt_files_and_verifiers_are_refused(tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in ((tmp_path / "none.txt", "does not exist"), (empty, "is empty"), (binary, "is no text file")):
        with pytest.raises(InputError, match=f"config.prompt.system: .*{path.name} {reason}"):
            load_prompt(str(path))
    with pytest.raises(InputError, match="is no text file"):
        load_prompt(str(tmp_path))
    with pytest.raises(InputError, match=r"config\.prompt\.instructions: unknown verifier 'number'"):
        load_prompt(instructions={"number": "One number."})
    with pytest.raises(InputError, match="record odd: verifier 'number' is none of digit, mcq, math, iou, open_ended"):
        load_prompt().messages(Record("odd", (), "x?", "1", "number"))


def test_the_hash_names_the_wording_and_nothing_else(tmp_path):
    prompt = load_prompt()
    own = prompt.sha256("template")
    backwards = dataclasses.replace(prompt, instructions=dict(reversed(prompt.instructions.items())))
    copy = tmp_path / "copy.txt"
    copy.write_text(f"{SYSTEM}\n")
    assert len(own) == 64
    assert {own} == {
        load_prompt().sha256("template"),
        backwards.sha256("template"),
        load_prompt(copy).sha256("template"),
    }
    others = [
        prompt.sha256("template "),
        dataclasses.replace(prompt, system=f"{SYSTEM}!").sha256("template"),
        *(load_prompt(instructions={verifier: "Other."}).sha256("template") for verifier in VERIFIERS),
    ]
    assert len({own, *others}) == 8


def test_completion_text():
    assert completion_text("Step 1: 3 top", "B") == "<think>\nStep 1: 3 top\n</think>\n<answer>B</answer>"
