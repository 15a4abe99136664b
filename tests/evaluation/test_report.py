import base64
import html
import io
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.chart import Curve, Series, html_curve, svg_curve, ticks
from vlaa_jax.evaluation.page import Box
from vlaa_jax.evaluation.report import Transcript, write_report
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.images import decode

COMPLETION = "<think>Step 1: 3 < 4 & so on</think>\n<answer>7</answer>"


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def transcript(**changes) -> Transcript:
    fields = {
        "id": "heldout-000001",
        "kind": "box",
        "question": "Which <image> & why?",
        "gold": "[1,2,3,4]",
        "images": [encode(Image.new("RGB", (112, 140), "red"), "PNG")],
        "before": "",
        "after": COMPLETION,
        "reward_before": 0.0,
        "reward_after": 0.825,
    }
    return Transcript(**{**fields, **changes})


def written(tmp_path, **parts) -> str:
    path = tmp_path / "report.html"
    write_report(path, title="Demo <run>", summary_lines=["4 → 6 & more"], **parts)
    return path.read_text()


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox='[^']*' role='img'.*?</svg>", page)]


def stored(picture: ElementTree.Element) -> tuple[str, Image.Image]:
    kind, data = picture.find("image").get("href").removeprefix("data:image/").split(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.quick
def test_one_file_that_needs_nothing_else_and_is_the_same_each_time(tmp_path):
    parts = {
        "tables": [Table("Results", ["kind", "gain"], [["all", "+21.7"]])],
        "curves": [Curve("Reward", {"greedy": ([0, 10], [0.4, 0.6], [0.35, 0.5], [0.45, 0.7])}, "mean")],
        "transcripts": [transcript()],
        "transcripts_note": "1 of 1,200",
        "details": {"Config": '{"seed": 0}'},
    }
    page = written(tmp_path, **parts)
    assert not re.findall(r"""(?:src|href)=['"](?!data:|#)|url\(|@import|https?:""", page)
    for text in ["<title>Demo &lt;run&gt;</title>", "4 → 6 &amp; more", "+21.7", "1 of 1,200", "{&quot;seed&quot;: 0}"]:
        assert text in page
    assert re.findall(r"<h2>(\w+)", page) == ["Results", "Curves", "Transcripts", "Details"]
    assert written(tmp_path, **parts) == page
    assert re.findall(r"<h2>(\w+)", written(tmp_path, tables=parts["tables"])) == ["Results"]


@pytest.mark.quick
def test_texts_of_the_policy_cannot_become_markup(tmp_path):
    attack = "<script>alert(1)</script><img src=x onerror=y>'\">"
    page = written(
        tmp_path,
        transcripts=[transcript(question=attack, gold=attack, before=attack, after=attack, kind=attack, id=attack)],
    )
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


@pytest.mark.quick
def test_a_completion_is_shown_whole_with_its_answer_marked(tmp_path):
    page = written(tmp_path, transcripts=[transcript()])
    assert "reward 0.00" in page and "reward 0.82" in page and "<i>nothing</i>" in page
    (answer,) = re.findall(r"<span class='answer'>(.*?)</span></div>", page)
    assert re.sub("<[^>]*>", "", answer) == "&lt;answer&gt;7&lt;/answer&gt;"
    assert "Step 1: 3 &lt; 4 &amp; so on" in page
    long = "<think>" + "word " * 1000 + "</think><answer>7</answer>"
    page = written(tmp_path, transcripts=[transcript(after=long)])
    shown, hidden, answer = re.search(
        r"<div class='text'>(.*?)<details><summary>… 4,318 more characters</summary>(.*?)</details>(.*?)</div>",
        page[page.index("completion after") :],
    ).groups()
    assert html.unescape(re.sub("<[^>]*>", "", shown + hidden + answer)) == long
    assert len(html.unescape(re.sub("<[^>]*>", "", shown))) == 697  # between two words


@pytest.mark.quick
def test_boxes_lie_in_pixels_of_their_own_picture_gold_below_the_others(tmp_path):
    images = [encode(Image.new("RGB", (1600, 800), "blue"), "PNG"), encode(Image.new("RGB", (100, 50), "red"), "PNG")]
    boxes = [
        ("after", [1400, 700, 1500, 790]),
        Box("gold", [1390.5, 701, 1500, 790]),
        Box("before", [40, 30, 20, 10], 1),
    ]
    first, second = pictures(written(tmp_path, transcripts=[transcript(images=images, boxes=boxes)]))
    assert (first.get("viewBox"), second.get("viewBox")) == ("0 0 1600 800", "0 0 100 50")

    def drawn(picture):
        rows = [rect for rect in picture.findall("rect") if rect.get("class") != "halo"]
        return [
            (rect.get("class"), *(float(rect.get(name)) for name in ("x", "y", "width", "height"))) for rect in rows
        ]

    assert drawn(first) == [("gold edge", 1390.5, 701, 109.5, 89), ("after edge", 1400, 700, 100, 90)]
    assert drawn(second) == [("before edge", 20, 10, 20, 20)]  # reversed corners are drawn all the same
    kind, picture = stored(first)
    assert (kind, picture.size, first.find("image").get("width")) == ("jpeg", (800, 400), "1600")
    kind, picture = stored(second)
    assert (kind, picture.size, picture.getpixel((0, 0))) == ("png", (100, 50), (255, 0, 0))


@pytest.mark.quick
def test_a_picture_stands_as_the_policy_saw_it_whatever_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    image = encode(Image.new("RGB", (300, 100), "red"), "JPEG", exif=exif)
    (picture,) = pictures(written(tmp_path, transcripts=[transcript(images=[image])]))
    seen, (_, copy) = decode(image), stored(picture)
    assert (copy.size, dict(copy.getexif()), picture.get("viewBox")) == (
        seen.size,
        {},
        f"0 0 {seen.width} {seen.height}",
    )


@pytest.mark.quick
@pytest.mark.parametrize("box", [("gold", [1, 2, 3, 4], 1), ("gold", [1, 2, 3]), ("other", [1, 2, 3, 4])])
def test_a_box_that_cannot_be_drawn_is_refused(box):
    with pytest.raises(ValueError, match="transcript heldout-000001: Box"):
        transcript(boxes=[box])


@pytest.mark.quick
def test_a_chart_puts_values_where_the_axis_says():
    curve = Curve(
        "Reward", {"a": Series([0, 50, 100], [0.0, 1.0, 0.5]), "b": ([0, 100], [0.2, 0.4], [0.1, 0.3], [0.3, 0.5])}
    )
    figure = html_curve(curve)
    (chart,) = pictures(figure)
    labels = {text.text: text for text in chart.findall("text") if text.get("class") == "y"}
    bottom, top = float(labels["0"].get("y")), float(labels["1"].get("y"))
    assert (bottom, top) == (182.0, 10.0)  # of 220, with room for the labels
    stroke, band = (chart.find(f"path[@class='{name}']").get("d") for name in ("line0 stroke", "line1 band"))
    points = [tuple(map(float, point.split())) for point in stroke[1:].split("L")]
    assert [y for _, y in points] == [bottom, top, pytest.approx((bottom + top) / 2, abs=0.1)]
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    low = [float(point.split()[1]) for point in band[1:-1].split("L")]
    assert low == [pytest.approx(bottom + share * (top - bottom), abs=0.1) for share in (0.3, 0.5, 0.3, 0.1)]
    assert "a <b>0 → 0.5</b>" in figure and "b <b>0.2 → 0.4</b>" in figure
    titles = [title.text for title in chart.iter("title")]
    assert titles[1] == "a, step 50: 1" and titles[4] == "b, step 100: 0.4 (0.3 to 0.5)"


@pytest.mark.quick
def test_a_chart_over_names_and_as_a_file_of_its_own():
    curve = Curve("Best <of> N", {"a": ([0, 1, 2], [10, 30, 20])}, "% & more", axis="N", labels=("2", "4", "all"))
    picture = ElementTree.fromstring(svg_curve(curve))
    (chart,) = pictures(html_curve(curve))
    space = "{http://www.w3.org/2000/svg}"
    (inner,) = picture.findall(f"{space}svg")
    # One chart in both: it stands below title, unit and one line of the legend.
    assert inner.get("y") == "72" and picture.get("viewBox") == "0 0 380 298"
    assert [text.text for text in picture.findall(f"{space}text")] == ["Best <of> N", "% & more", "a: 10 → 20"]
    for found, prefix in ((chart, ""), (inner, space)):
        assert [x.text for x in found.findall(f"{prefix}text") if x.get("class") == "x"] == ["2", "4", "all", "N"]
        assert [title.text for title in found.iter(f"{prefix}title")] == ["a, N 2: 10", "a, N 4: 30", "a, N all: 20"]


@pytest.mark.quick
def test_named_values_are_points():
    curve = Curve("Judges", {"PRM": Series([40, 60, 50], [10, 20, 15], names=["a", "b", "<c>"])}, axis="own")
    figure = html_curve(curve)
    (chart,) = pictures(figure)
    assert chart.find("path[@class='line0 stroke']") is None and "→" not in figure + svg_curve(curve)
    dots = [float(dot.get("cx")) for dot in chart.findall("circle[@class='line0 dot']")]
    assert dots[2] == pytest.approx((dots[0] + dots[1]) / 2, abs=0.1) and dots[0] < dots[1]
    assert [title.text for title in chart.iter("title")] == ["a, own 40: 10", "b, own 60: 20", "<c>, own 50: 15"]


@pytest.mark.quick
@pytest.mark.parametrize(
    "series", [{}, {"a": ([3], [0.0])}, {"a": ([0, 1], [-5e-7, -4e-7])}, {"a": ([1, 2], [1e6, 1e6])}]
)
def test_a_chart_of_almost_nothing(series):
    figure = html_curve(Curve("Reward", series))
    assert "nan" not in figure and "inf" not in figure
    assert len(pictures(figure)) == (1 if series else 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"a": ([0, 1], [0.5])}, "'a': steps, values, low and high need one equal length above 0"),
        ({"a": ([], [])}, "one equal length above 0"),
        ({"a": ([0], [0.5], [0.4])}, "one equal length above 0"),
        ({"a": ([0], [float("nan")])}, "'a': a number is not finite"),
        ({str(i): ([0], [0.5]) for i in range(7)}, "7 lines, at most 6 can be told apart"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_refused(series, message):
    with pytest.raises(InputError, match=message):
        Curve("Reward", series)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0.0, 1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.58, False, [0.3, 0.4, 0.5, 0.6]),
        (-0.3, 0.1, False, [-0.3, -0.2, -0.1, 0, 0.1]),
        (1, 150, True, [0, 50, 100, 150]),
        (3, 5, True, [3, 4, 5]),
        (7, 7, True, [6, 8]),
    ],
)
def test_ticks(low, high, whole, expected):
    assert ticks(low, high, 5, whole=whole) == expected


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_enclose_the_values_evenly(low, span):
    found = ticks(low, low + span, 5)
    assert found[0] <= low + 1e-6 * (abs(low) + span) and found[-1] >= low + span - 1e-6 * (abs(low) + span)
    assert 2 <= len(found) <= 8
