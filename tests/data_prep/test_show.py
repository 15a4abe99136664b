"""The page and the print of records: everything is there, nothing of the data can become markup or move the cursor."""

import argparse
import base64
import html
import io
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from data_prep import show
from data_prep.show import draw, find
from data_prep.show_page import steps, visible
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import open_split, write_records

pytestmark = pytest.mark.quick


def encoded(size, format="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, format, **options)
    return buffer.getvalue()


def written(folder, records, split="sft", kind=Record):
    write_records(folder / "data", {split: records}, kind=kind, name="hand_made", version="1.0.0")
    return f"{folder}/data:{split}"


def run(location, *more, page=None):
    parser = argparse.ArgumentParser()
    show.add_command(parser.add_subparsers())
    arguments = ["show", f"--data={location}", *more, *([f"--html={page}"] if page else [])]
    arguments = parser.parse_args(arguments)
    assert not arguments.run(arguments)
    return page.read_text() if page else ""


def words(page):
    """Texts of the page without markup."""
    return html.unescape(re.sub(r"<[^>]*>", "\n", page[page.index("<main>") :]))


def pictures(page):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox='[^']*' role='img'.*?</svg>", page)]


BUILT = Record(
    "arxivqa-cond-mat-7",
    (encoded((300, 200)),),
    "<image>\nWhich curve grows?",
    "B",
    "mcq",
    choices=("the red one", "the blue one"),
    trace="Step 1: both start at 0.\nStep 2: only the blue one rises.",
    source="arxivqa",
    metadata={
        "rewritten": "What is left after rewriting.",
        "distilled": "<think>What the reasoner said.</think>",
        "caption": "Two curves on white.",
        "models": {"caption": "seer-1", "reason": "thinker-2"},
        "original_gold": "B)",
        "repairs": ["letter"],
        "nested": {"a": [1, None]},
        "long": "x" * 101,
    },
)


def test_a_record_is_shown_with_all_that_it_holds(tmp_path, capsys):
    page = run(written(tmp_path, [BUILT]), page=tmp_path / "page.html")
    lines = [line for line in words(page).splitlines() if line.strip()]
    for text in (
        ["mcq", " arxivqa-cond-mat-7", "<image>", "Which curve grows?", "A", "the red one", "B", "the blue one"],
        ["gold", " B", "trace ", "57 characters", "Step 1: both start at 0.", "Step 2: only the blue one rises."],
        ["caption ", "20 characters", "Two curves on white.", "distilled "],
        ["<think>What the reasoner said.</think>", "rewritten "],
        ["long ", "101 characters", "x" * 101],
        ["source", "arxivqa", "models", "caption: seer-1, reason: thinker-2", "nested", '{"a": [1, null]}'],
        ["original_gold", "B)", "repairs", "letter"],
        ["300 × 200 PNG, 1 kB"],
    ):
        assert any(lines[i : i + len(text)] == text for i in range(len(lines))), (text, lines)
    assert re.findall(r"<li class=right[^>]*><b>(.)</b>", page) == ["B"]
    assert page.count("<details open>") == 1  # the trace; other texts are one click away
    printed = capsys.readouterr().out
    assert "record 0\n" in printed and "1 of 1 records, drawn with the seed 0." in printed
    assert re.search(r"choices +A\. the red one; B\. the blue one\n", printed)
    assert re.search(r"trace +Step 1: both start at 0\. Step 2: only the blue one rises\.\n", printed)
    assert re.search(r"metadata\.original_gold +B\)\n", printed)


def test_the_page_needs_nothing_else_and_is_the_same_each_time(tmp_path):
    location = written(tmp_path, [BUILT, *(Record(f"r{i}", (), f"q {i}", "1", "digit") for i in range(30))])
    page = run(location, "--records=5", "--seed=1", page=tmp_path / "a.html")
    assert not re.findall(r"""(?:src|href)=['"](?!data:|#)|url\(|@import|https?:""", page)
    assert page == run(location, "--records=5", "--seed=1", page=tmp_path / "b.html")
    ids = re.compile(r"</b> ([\w-]+)</p>")
    drawn = ids.findall(page)
    assert len(set(drawn)) == 5 and drawn != ids.findall(run(location, "--records=5", page=tmp_path / "c.html"))
    assert "5 of 31 records, drawn with the seed 1." in page


@pytest.mark.parametrize(
    ("space", "gold"),
    [("pixels", "[320, 80, 960, 400]"), ("normalised", "[0.25, 0.1, 0.75, 0.5]"), ("thousand", "[250, 100, 750, 500]")],
)
def test_a_gold_box_lies_on_its_picture_in_pixels_of_the_stored_one(tmp_path, space, gold):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown and asked about upright
    record = Record(
        "box",
        (encoded((20, 30)), encoded((800, 1280), "JPEG", exif=exif)),
        "Where?",
        gold,
        "iou",
        box_space=space,
        metadata={"box_image": 1},
    )
    page = run(written(tmp_path, [record]), page=tmp_path / "page.html")
    small, large = pictures(page)
    assert small.findall("rect") == [] and large.get("viewBox") == "0 0 1280 800"
    box = large.find("rect[@class='gold edge']")
    assert [float(box.get(name)) for name in ("x", "y", "width", "height")] == [320, 80, 640, 320]
    data = large.find("image").get("href").partition(";base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (640, 400)


HOSTILE = "</script><img src=x onerror=y>'\"&amp;</title>\x00\x1b[31m\u202eturned\u2066\u200f\r\nnext"


def test_hostile_texts_stay_texts(tmp_path, capsys):
    record = Record(
        HOSTILE, (encoded((9, 9)), b"<svg onload=z>"), HOSTILE, HOSTILE, "mcq", (HOSTILE,), "", HOSTILE, HOSTILE,
        {HOSTILE: HOSTILE, "long": HOSTILE * 9, "list": [HOSTILE]},
    )  # fmt: skip
    page = run(written(tmp_path, [record]), page=tmp_path / "page.html")
    assert not re.search(r"<script|</script|<img|[\x00-\x09\x0b-\x1f\u200f\u202e\u2066]", page.replace("\t", ""))
    shown = "</script><img src=x onerror=y>'\"&amp;</title>[U+0000][U+001B][31m[U+202E]turned[U+2066][U+200F]"
    assert words(page).count(shown) >= 16
    assert page.count("</title>") == 1
    assert "picture 2: undecodable image: of no known format" in page
    printed = capsys.readouterr().out
    assert not re.search(r"[^\n -~…]", printed) and shown in printed


def test_hidden_characters_show_their_codes_and_scripts_stay_as_they_are():
    assert visible("a\u00adb\u2028c\ufeff\ud800\x7f") == "a[U+00AD]b[U+2028]c[U+FEFF][U+D800][U+007F]"
    assert visible("مرحبا שלום 你好 é\n\tक्\u200dष") == "مرحبا שלום 你好 é\n\tक्\u200dष"


def test_a_huge_text_ends_on_the_page(tmp_path, capsys):
    record = Record("big", (), "long " * 2_000_000, "1", "digit")
    page = run(written(tmp_path, [record]), page=tmp_path / "page.html")
    assert len(page) < 70_000 and "… 9,950,000 more characters are not on this page" in page
    assert len(capsys.readouterr().out) < 1000


def test_a_solution_is_shown_step_by_step_with_the_values_that_are_known(tmp_path, capsys):
    texts = ["Step 1: A is 40.", "Step 2: B equals C.", "Step 3: so B is 70."]
    whole = [
        ProcessRecord(f"geo/{number}", (encoded((9, 9)),), "What is B?", "\n".join(texts[: number + 1]), value)
        for number, value in enumerate((0.75, 0.25, 1.0))
    ]
    records = [ProcessRecord("other/0", (), "?", texts[0], 0.5), whole[0], whole[2], whole[1]]
    location = written(tmp_path, records, "train", ProcessRecord)
    page = run(location, "--ids=geo/2,other/0", page=tmp_path / "page.html")
    found = re.findall(r"<div class='text' dir='auto'>(.*?)</div>.*?width:([\d.]+)%.*?<b>([\d.]+)</b>", page)
    assert found == [
        (texts[0], "75.0", "0.75"), (texts[1], "25.0", "0.25"), (texts[2], "100.0", "1.00"), (texts[0], "50.0", "0.50")
    ]  # fmt: skip
    assert re.search(r"value +█{10}░{10} 0\.50\n", capsys.readouterr().out)
    assert steps("First, look.\nStep 1: x\nStep 12. y") == ["First, look.\n", "Step 1: x\n", "Step 12. y"]
    assert steps("no steps") == ["no steps"]


def test_ids_come_in_their_order_and_unknown_ones_are_named(tmp_path):
    source = open_split(written(tmp_path, [Record(name, (), "?", "1", "digit") for name in "abcd"]))
    assert find(source, ["d", "a"]) == [3, 0]
    with pytest.raises(InputError, match="data:sft has no record 'e'"):
        find(source, ["a", "e"])


def test_a_draw_is_by_seed_and_never_more_than_there_is():
    assert draw(1000, 8, 3) == draw(1000, 8, 3) != draw(1000, 8, 4)
    assert draw(5, 8, 0) == [0, 1, 2, 3, 4]
    for count, seed in ((0, 0), (3, -1)):
        with pytest.raises(InputError, match="expected 1 or more records"):
            draw(5, count, seed)


def test_a_page_without_a_folder_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="--html: no folder"):
        run(written(tmp_path, [BUILT]), page=tmp_path / "nowhere" / "page.html")
