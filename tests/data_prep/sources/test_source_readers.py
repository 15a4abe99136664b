"""Every source's fixture gives these drafts and these reasons, word for word."""

import hashlib
import json
import pathlib
import subprocess
import sys

import pytest
import source_fixtures

from data_prep import pictures
from data_prep.drafts import Draft, SetAside, from_line, to_line
from data_prep.sources.llava_cot import unpad_boxes
from data_prep.sources.published import PUBLISHED
from data_prep.sources.readers import READERS, read_source
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

CLEVR = "CLEVR-Math(MathV360K)/train-00000-of-00001.parquet"
GEOQA = "geo170k(qa)/train-0000{}-of-00002.parquet"
BOX = "Please provide the bounding box coordinate of the region this sentence describes: "


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return source_fixtures.write_all(tmp_path_factory.mktemp("sources"))


def clevr(number, row, question, gold, context, repairs=("number in words around it",)):
    return Draft(
        id=f"clevr_math-CLEVR_train_{number:06d}.png",
        source="clevr_math",
        image=f"{CLEVR}!{row}",
        question=question,
        gold=gold,
        verifier="digit",
        context=context and f"The scene was made of these objects: {context}.",
        metadata={"origin": f"{CLEVR}, row {row}", "repairs": list(repairs)},
    )


def geoqa(name, table, row, question, options, gold, choices, repairs=()):
    table = GEOQA.format(table)
    return Draft(
        id=f"geoqa170k-{name}",
        source="geoqa170k",
        image=f"{table}!{row}",
        question=f"{question}\nChoices:\n{options}",
        gold=gold,
        verifier="mcq",
        choices=choices,
        metadata={"origin": f"{table}, row {row}", "repairs": list(repairs)},
    )


def synthesis(number, image, question, in_words, gold, repairs):
    return Draft(
        id=f"synthesis-{number}",
        source="synthesis",
        image=f"Synthesis/images/{image}.png",
        question=question,
        gold=gold,
        verifier="math",
        text_question=in_words,
        metadata={"origin": f"synthesis.jsonl:{number + 1}", "repairs": repairs},
    )


def arxivqa(name, line, image, question, gold, choices, repairs=(), **metadata):
    return Draft(
        id=f"arxivqa-{name}",
        source="arxivqa",
        image=f"images.tar!images/{image}.jpg",
        question=question,
        gold=gold,
        verifier="mcq",
        choices=choices,
        metadata={"origin": f"arxivqa.jsonl:{line}", "repairs": list(repairs), **metadata},
    )


def docvqa(number, place, page, question, answers):
    return Draft(
        id=f"docvqa-{number}",
        source="docvqa",
        image=f"spdocvqa_images/{page}.png",
        question=question,
        gold=answers[0],
        verifier="open_ended",
        metadata={"origin": f"train_v1.0_withQT.json:data[{place}]", "answers": answers},
    )


def vizwiz(number, question, gold, agreement):
    return Draft(
        id=f"vizwiz-VizWiz_train_{number:08d}.jpg",
        source="vizwiz",
        image=f"train/VizWiz_train_{number:08d}.jpg",
        question=question,
        gold=gold,
        verifier="open_ended",
        metadata={"origin": f"train.json:[{number}]", "agreement": pytest.approx(agreement)},
    )


def allava(number, place, question, gold, caption):
    return Draft(
        id=f"allava-allava_laion_{number}",
        source="allava_laion",
        image=f"allava_laion/images.zip!images/{number}.jpeg",
        question=question,
        gold=gold,
        verifier="open_ended",
        caption=caption,
        metadata={
            "origin": f"ALLaVA-Instruct-LAION-4V.json:[{place}]",
            "captions": "ALLaVA-Caption-LAION-4V",
            "url": f"https://example.org/{number}.jpg",
        },
    )


def boxed(source, name, line, turn, image, region, gold):
    return Draft(
        id=f"{source}-{name}-{turn}",
        source=source,
        image=f"image.zip!{source}/{image}.jpg",
        question=f"{BOX}{region}",
        gold=gold,
        verifier="iou",
        box_space="normalised",
        caption=f"A picture with {region}",
        distilled=(
            f"<think>\nI will find the region that the sentence names.\n\nA picture with {region}\n\n"
            f"It fills the part {gold}.\n</think>\n\n{gold}"
        ),
        metadata={"origin": f"train.jsonl:{line}, turn {turn}", "boxes": "fractions of the padded square, converted"},
    )


DRAFTS = {
    "clevr_math": [
        clevr(
            101, 0, "Subtract all spheres. How many objects are left?", "3",
            "large blue metal sphere, small red metal cylinder, small red metal cylinder, small brown metal cylinder",
        ),
        clevr(
            12, 1, "Add 2 red cubes. How many objects exist?", "4", "large green rubber cube, small cyan rubber sphere",
            (),
        ),
        clevr(
            345, 2, "Subtract all cubes. How many objects are left?", "1",
            "small yellow metal cube, small purple rubber cube, large gray metal sphere",
        ),
        clevr(6789, 4, "Subtract all yellow things. How many objects are left?", "1", ""),
    ],
    "geoqa170k": [
        geoqa(
            "geoqa_plus-31-10", 0, 0, "A square has sides of 4.0. What is its area?",
            "A: 8.0\nB: 12.0\nC: 16.0\nD: 4.0", "C", ("8.0", "12.0", "16.0", "4.0"),
        ),
        geoqa(
            "geo3k-17-1", 0, 2, "Two angles of a triangle measure 80° and 60°. How large is the third?",
            "A:40°\nB:60°\nC:120°\nD:140°", "A", ("40°", "60°", "120°", "140°"),
        ),
        geoqa(
            "geoqa_plus-8-2", 1, 0, "A circle has the radius 3. What is its diameter?", "A: 3\nB: 6\nC: 9", "B",
            ("3", "6", "9"), ["letter with marks", "letter in lower case"],
        ),
        geoqa(
            "geoqa_plus-9-3", 1, 1, "A right angle is cut in half. How large is each part?", "A: 45°\nB: 90°", "A",
            ("45°", "90°"), ["letter with marks"],
        ),
    ],
    "synthesis": [
        synthesis(
            0, "gen_func-func_sine_20000001_aaaa", "What is the function's equation?",
            "The function y = a * sin(2 * x) goes through the points (pi/4,3). What is the function's equation?",
            "y = 3 * sin(2 * x)", ["solution before the answer"],
        ),
        synthesis(
            1, "gen_solid-cube_3_aaaa", "What is the volume?", "A cube has edges of 3. What is its volume?", "27",
            ["solution before the answer"],
        ),
        synthesis(
            2, "gen_func-func_polynomial_7_bbbb", "Determine the function.",
            "The function y = 2 * x + b goes through the point (1,5). Determine the function.", "y = 2 * x + (3)",
            ["solution before the answer", "function completed"],
        ),
        synthesis(
            3, "gen_plane-square_5_cccc", "What is its area?", "A square has sides of 5. What is its area?", "25",
            ["box"],
        ),
    ],
    "arxivqa": [
        arxivqa(
            "cond-mat-15", 1, "0801.0001_1",
            "What does the vertical axis show?\nA) Temperature\nB) Pressure\nC) Density\nD) Speed", "B",
            ("Temperature", "Pressure", "Density", "Speed"), rationale="The axis says so.",
        ),
        arxivqa(
            "hep-ph-7", 3, "0906.0002_2", "Which curve rises?\nA) Blue\nB) Red\nC) Both", "C", ("Blue", "Red", "Both"),
            rationale="The axis says so.",
        ),
        arxivqa(
            "cs-81", 4, "1704.00006_1", "How does the error change with more data?\nA) It falls.\nB) It rises.", "A",
            ("It falls.", "It rises."), ["letter with marks", "letter in lower case"], rationale="The axis says so.",
        ),
        arxivqa(
            "cs-82", 5, "1704.00007_3", "How many panels are there?\nA) 1\nB) 2\nC) 3\nD) 4", "D", ("1", "2", "3", "4"),
            ["letter with the option's text"],
        ),
    ],
    "docvqa": [
        docvqa(337, 0, "aaaa0001_1", "When was the letter written?", ["3 May 1990"]),
        docvqa(339, 2, "bbbb0002_1", "What is the total?", ["$ 25.00", "25.00"]),
        docvqa(340, 3, "cccc0003_2", "Which page is this?", ["2"]),
        docvqa(341, 4, "dddd0004_8", "What is the name of the company?", ["Tea Traders Limited", "Tea Traders"]),
    ],
    "vizwiz": [
        vizwiz(0, "Which herb is in this jar?", "Dried thyme", 6 / 8.5),
        vizwiz(1, "What does the tin hold?", "lentils", 6 / 10),
        vizwiz(3, "What number is on the bus?", "42", 8 / 9),
        vizwiz(4, "What colour is this shirt?", "navy", 3 / 7.5),
    ],
    "allava_laion": [
        allava(
            100000001, 0, "Why may the shop on the map be easy to find?",
            "It stands where two main roads meet, beside other shops.",
            "A section of a map. A red marker stands where Bell St meets Albert St; shops are named around it.",
        ),
        allava(
            100000002, 1, "How do the stones change the look of the ring?",
            "They catch the light and set the leaf apart from the band.",
            "A silver ring in the form of a leaf, edged with small clear stones.",
        ),
        allava(
            100000003, 2, "What time of day does the light suggest?", "The long shadows suggest the evening.",
            "A field with long shadows under an orange sky.",
        ),
        allava(
            100000004, 3, "What could the red door be for?",
            "It may be the way in for guests, since a sign hangs over it.",
            "A white house with a red door and a sign over it.",
        ),
    ],
    "coco": [
        boxed("coco", "000000000001", 1, 1, "train2017/000000000001", "a red ball.", "[0.25, 0.167, 0.5, 0.5]"),
        boxed("coco", "000000000001", 1, 2, "train2017/000000000001", "a blue box.", "[0.5, 0.5, 1, 0.993]"),
        boxed("coco", "000000000009", 3, 1, "train2017/000000000009", "the cup.", "[0.233, 0.1, 0.767, 0.9]"),
        boxed("coco", "000000000025", 4, 1, "train2017/000000000025", "the dog.", "[0.1, 0.1, 0.4, 0.6]"),
    ],
    "vg": [
        boxed(
            "vg", "VG_100K_2-2400001", 6, 1, "VG_100K_2/2400001", "A grey mat on the floor.",
            "[0.21, 0.767, 0.36, 0.953]",
        ),
        boxed(
            "vg", "VG_100K_2-2400001", 6, 2, "VG_100K_2/2400001", "The lamp over the mirror.",
            "[0.47, 0.087, 0.68, 0.193]",
        ),
        boxed("vg", "VG_100K-7", 7, 1, "VG_100K/7", "A window.", "[0.1, 0, 0.9, 0.5]"),
        boxed("vg", "VG_100K-8", 8, 1, "VG_100K/8", "A tree.", "[0, 0.3, 0.4, 0.8]"),
    ],
}  # fmt: skip

REASONS = {
    "clevr_math": [
        (
            "clevr_math-CLEVR_train_000345.png",
            f"repeated picture: clevr_math-CLEVR_train_000345.png has it ({CLEVR}, row 3)",
        ),
        (
            "clevr_math-CLEVR_train_000777.png",
            "unreadable gold: gold answer 'The answer is one' is not one integer, as the digit verifier expects "
            f"({CLEVR}, row 5)",
        ),
    ],
    "geoqa170k": [
        (
            "geoqa170k-geoqa_plus-31-11",
            f"repeated picture: geoqa170k-geoqa_plus-31-10 has it ({GEOQA.format(0)}, row 1)",
        ),
        (
            "geoqa170k-geoqa_plus-10-4",
            f"no answer: the solution does not end with `Answer:` and a letter ({GEOQA.format(1)}, row 2)",
        ),
    ],
    "synthesis": [
        ("synthesis-4", "repeated picture: synthesis-3 has it (synthesis.jsonl:5)"),
        ("synthesis-5", "no picture: neither side has one (synthesis.jsonl:6)"),
    ],
    "arxivqa": [
        ("arxivqa-cond-mat-16", "repeated picture: arxivqa-cond-mat-15 has it (arxivqa.jsonl:2)"),
        (
            "arxivqa-cs-83",
            "unreadable gold: gold answer 'E' does not name options A to B (not_an_option) (arxivqa.jsonl:6)",
        ),
    ],
    "docvqa": [
        ("docvqa-338", "repeated picture: docvqa-337 has it (train_v1.0_withQT.json:data[1])"),
        ("docvqa-342", "empty list: answers (train_v1.0_withQT.json:data[5])"),
    ],
    "vizwiz": [
        ("vizwiz-VizWiz_train_00000002.jpg", "unanswerable: by its mark or by most of its answers (train.json:[2])")
    ],
    "allava_laion": [
        (
            "allava-allava_laion_100000005",
            "no caption: the file of captions has none that can be read for the picture "
            "(ALLaVA-Instruct-LAION-4V.json:[4])",
        )
    ],
    "coco": [
        ("coco-000000000009-2", "no box asked for: another kind of question (train.jsonl:3, turn 2)"),
        ("coco-000000000030-1", "no box asked for: another kind of question (train.jsonl:5, turn 1)"),
    ],
    "vg": [
        ("vg-VG_100K_2-2400001-3", "no box asked for: another kind of question (train.jsonl:6, turn 3)"),
        ("vg-VG_100K-9-1", "repeated picture: train.jsonl:8 has it (train.jsonl:9, turn 1)"),
    ],
}


def test_every_published_source_has_a_reader_and_a_fixture(folders):
    assert READERS.keys() == PUBLISHED.keys() == DRAFTS.keys() == folders.keys()


@pytest.mark.parametrize("source", READERS)
def test_the_drafts_of_a_source(folders, source):
    results = list(read_source(source, folders[source]))
    assert [result for result in results if isinstance(result, Draft)] == DRAFTS[source]
    aside = [result for result in results if isinstance(result, SetAside)]
    assert [(entry.id, entry.reason) for entry in aside] == REASONS[source]
    assert {(entry.source, entry.step) for entry in aside} == {(source, "read")}


@pytest.mark.parametrize("source", READERS)
def test_a_draft_has_the_published_verifier_its_picture_and_a_line(folders, source):
    for draft in read_source(source, folders[source]):
        if isinstance(draft, Draft):
            assert draft.verifier == PUBLISHED[source].verifier
            assert pictures.read(folders[source], draft.image)
            assert from_line(to_line(draft)) == draft


@pytest.mark.parametrize("source", READERS)
def test_every_fixture_says_where_its_layout_was_read(source):
    name = "llava_cot" if source in ("coco", "vg") else source
    origin = (source_fixtures.ANNOTATIONS / name / "ORIGIN.md").read_text()
    assert "Status: " in origin and "not checked against the real file" in origin


@pytest.mark.parametrize(
    ("size", "content", "expected"),
    [
        # 640 x 480 in a square of 640: 80 pixels above and below. (0.25 x 640 - 80) / 480 = 0.1667.
        ((640, 480), "[0.25, 0.25, 0.5, 0.5]", "[0.25, 0.167, 0.5, 0.5]"),
        # 480 x 640: 80 pixels at the left and at the right.
        ((480, 640), "[0.25, 0.25, 0.5, 0.5]", "[0.167, 0.25, 0.5, 0.5]"),
        ((500, 500), "[0.61, 0.36, 0.92, 0.83]", "[0.61, 0.36, 0.92, 0.83]"),
        # An odd margin, 31 of 63 pixels above: pictures are pasted at whole pixels. (0.5 x 100 - 31) / 37 = 0.5135.
        ((100, 37), "[0, .5, 1.0, 0.5]", "[0, 0.514, 1, 0.514]"),
        # Two decimals of the square reach 0.0067 beyond the picture's edge: cut.
        ((640, 480), "from [0.1, 0.12, 0.2, 0.88] on", "from [0.1, 0, 0.2, 1] on"),
        ((640, 480), "a list [1, 2, 3] and a year [1990]", "a list [1, 2, 3] and a year [1990]"),
    ],
)
def test_boxes_of_the_padded_square_become_those_of_the_picture(size, content, expected):
    assert unpad_boxes(content, size) == expected


@pytest.mark.parametrize("box", ["[0.1, 0.05, 0.2, 0.5]", "[0.1, 0.2, 1.5, 0.5]", "[0.1, 0.2, 0.3, 0.95]"])
def test_a_box_in_the_padding_is_refused(box):
    with pytest.raises(InputError, match="box outside the picture"):
        unpad_boxes(box, (640, 480))


def test_a_compressed_archive_of_pictures_says_how_to_unpack_it(tmp_path):
    (tmp_path / "arxivqa.jsonl").write_text("{}\n")
    (tmp_path / "images.tgz").write_bytes(b"")
    with pytest.raises(InputError, match=r"source arxivqa: .*tar -xzf images\.tgz"):
        list(read_source("arxivqa", tmp_path))


def test_unpacked_pictures_are_found_too(folders, tmp_path):
    """DocVQA in the folders of its first download, ALLaVA from inside its folder, COCO unpacked."""
    annotations = source_fixtures.ANNOTATIONS
    place(tmp_path / "doc", "train_v1.0.json", annotations / "docvqa/spdocvqa_qas/train_v1.0_withQT.json")
    source_fixtures.write(tmp_path / "doc/documents/aaaa0001_1.png", b"")
    assert next(read_source("docvqa", tmp_path / "doc")).image == "documents/aaaa0001_1.png"
    allava = folders["allava_laion"] / "allava_laion"
    assert next(read_source("allava_laion", allava)).image == "images.zip!images/100000001.jpeg"
    place(tmp_path / "cot", "train.jsonl", annotations / "llava_cot/train.jsonl")
    name = "coco/train2017/000000000001.jpg"
    source_fixtures.write(tmp_path / "cot" / name, source_fixtures.picture(name, "JPEG", (64, 48)))
    results = list(read_source("coco", tmp_path / "cot"))
    assert [result.image for result in results if isinstance(result, Draft)] == [name, name]
    missing = "picture 'coco/train2017/000000000009.jpg': no such file"
    assert any(result.reason.startswith(missing) for result in results if isinstance(result, SetAside))


def place(folder, name, annotation):
    source_fixtures.write(folder / name, pathlib.Path(annotation).read_bytes())


def test_the_fixtures_command_makes_the_same_bytes(folders, tmp_path):
    command = [sys.executable, source_fixtures.__file__, f"--out={tmp_path / 'made'}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition(":")[0] for line in printed] == list(folders)
    parent = folders["docvqa"].parent
    assert digests(tmp_path / "made") == digests(parent)


def digests(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_unknown_sources_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="unknown source 'chartqa', expected one of clevr_math, geoqa170k"):
        list(read_source("chartqa", tmp_path))
    with pytest.raises(InputError, match=r"source docvqa: .*none is not a folder"):
        list(read_source("docvqa", tmp_path / "none"))
    for source in READERS:
        with pytest.raises(InputError, match=f"source {source}: .*has n"):
            list(read_source(source, tmp_path))


def test_no_record_of_the_source_is_said(tmp_path):
    line = {"id": "1", "image": "sqa/1.png", "conversations": []}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"source vg: .*train.jsonl: no record whose image is in vg/; found sqa"):
        list(read_source("vg", tmp_path))
