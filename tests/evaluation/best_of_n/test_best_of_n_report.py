"""Measures, tables, pictures and the folder, from verdicts and scores that can be checked by hand."""

import csv
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.best_of_n import run
from vlaa_jax.evaluation.best_of_n.answered import Answered, Judged
from vlaa_jax.evaluation.best_of_n.folder import check_folder
from vlaa_jax.evaluation.best_of_n.measures import measure
from vlaa_jax.evaluation.best_of_n.pictures import pictures
from vlaa_jax.evaluation.best_of_n.selection import GREEDY, LONGEST, MAJORITY, MEAN, ORACLE, SHORTEST, Rule
from vlaa_jax.evaluation.best_of_n.tables import average_table, correlation_table, correlations, model_tables
from vlaa_jax.evaluation.bootstrap import interval, paired_interval
from vlaa_jax.evaluation.chart import Series
from vlaa_jax.evaluation.judges.judge import unread
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Trace

pytestmark = pytest.mark.quick


def verdict(score: float) -> Trace:
    return Trace(valid=True, normal_form=str(score), rule="equal", score=score, extracted="x", seconds=0.0)


def question(number: int, right: list[int], verifier: str, dominance: str) -> Answered:
    record = Record(f"q{number}", (), "?", "1", verifier, metadata={"dominance": dominance})
    texts = tuple(f"Step 1: {'right' if x else 'wrong'} {g}" for g, x in enumerate(right))
    return Answered(record, texts, tuple(verdict(float(x)) for x in right), ("greedy", verdict(float(number % 2))))


# Of eight questions each has one right response among its first two and one among the next two.
QUESTIONS = tuple(
    question(i, [1, 0, 0, 1] if i % 2 else [0, 1, 1, 0], "digit" if i < 4 else "mcq", "text" if i < 6 else "vision")
    for i in range(8)
)
FOUR = Judged("four", QUESTIONS, {})


class Perfect:
    """Knows the right responses, but for those of two questions, which it cannot read."""

    name, whole = "perfect", False

    def __init__(self):
        self.problems = {"no score in the reply": 2}

    def __call__(self, questions):
        assert all(own.record.images == (b"read",) for own in questions)
        return [
            [
                np.array([0.5, float("right" in text)]) if own.record.id not in ("q0", "q1") else unread(2)
                for text in own.responses
            ]
            for own in questions
        ]


class Opposite(Perfect):
    name = "opposite"

    def __call__(self, questions):
        return [[1 - 0.5 * scores for scores in own] for own in super().__call__(questions)]


def read(name: str) -> Record:
    return Record(name, (b"read",), "?", "1", "digit")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with two judges over two models' responses; the second model has two responses a question only."""
    two = Judged("two", tuple(Answered(q.record, q.texts[:2], q.traces[:2], q.greedy) for q in QUESTIONS), {})
    folder = tmp_path_factory.mktemp("best") / "out"
    settings = run.Settings((2, 4), folder, "Best of N on <data>", ("Two models.",), own_accuracy={"perfect": 0.5})
    tables = run.evaluate([FOUR, two], [Perfect, Opposite], read, settings)
    return folder, tables


@pytest.fixture(scope="module")
def measured():
    scores = {
        judge.name: judge()([run.Question(read(q.record.id), q.texts) for q in QUESTIONS])
        for judge in (Perfect, Opposite)
    }
    return measure(Judged("four", QUESTIONS, scores), (2, 4, 16))


def test_cells(measured):
    cell = measured.cells[Rule("perfect", "last"), 4]
    # Six questions are picked rightly, two are drawn from all four: half of these are right.
    values = [0.5, 0.5, 1, 1, 1, 1, 1, 1]
    assert cell.accuracy.value == 0.875 and cell.gain.value == 0.375
    assert cell.accuracy == interval(values, resamples=2000)
    assert cell.gain == paired_interval([0.5] * 8, values, resamples=2000)
    assert (cell.questions, cell.unread) == (8, 8)
    assert cell.tied == 1.0  # two right ones, or all four
    assert measured.cells[Rule("perfect", "last"), 2].tied == 0.25
    assert measured.cells[Rule("opposite", "last"), 4].accuracy.value == 0.125
    assert measured.cells[Rule(ORACLE), 2].accuracy == (1.0, 1.0, 1.0)
    assert measured.cells[Rule(GREEDY), 4].accuracy.value == 0.5
    assert measured.cells[Rule(MEAN), 4].gain == (0.0, 0.0, 0.0)


def test_no_question_has_16_responses(measured):
    assert (Rule(MEAN), 16) not in measured.cells and measured.largest == 4
    accuracy, gain = model_tables(measured)[:2]
    assert accuracy.header[:5] == ["judge", "aggregation", "N = 2", "N = 4", "N = 16"]
    assert {row[4] for row in accuracy.rows} == {"-"} == {row[4] for row in gain.rows}


def test_splits(measured):
    assert list(measured.splits) == ["verifier", "dominance"]
    cells = measured.splits["dominance"]
    assert {name: own[Rule(MEAN)].questions for name, own in cells.items()} == {"text": 6, "vision": 2}
    assert cells["text"][Rule("perfect", "last")].accuracy.value == pytest.approx(5 / 6)
    assert cells["vision"][Rule("perfect", "last")].accuracy.value == 1.0
    by_verifier = measured.splits["verifier"]
    assert by_verifier["digit"][Rule("perfect", "last")].gain.value == 0.25
    (table,) = [table for table in model_tables(measured) if table.title.startswith("By dominance")]
    assert table.header[2:] == ["text (6)", "vision (2)"]
    (row,) = [row for row in table.rows if row[:2] == ["perfect", "last (ORM)"]]
    assert row[3] == "100.0 (+50.0 [+50.0, +50.0])"
    assert table.rows[0][:4] == ["mean sample", "", "50.0", "50.0"]


def test_duels(measured):
    perfect, opposite, vote = Rule("perfect", "mean"), Rule("opposite", "mean"), Rule(MAJORITY)
    assert set(measured.duels) == {(perfect, opposite), (opposite, perfect)} | {
        (judge, Rule(name)) for judge in (perfect, opposite) for name in (MAJORITY, SHORTEST, LONGEST)
    }
    # Six questions of eight are picked rightly against wrongly; of the other two both draw.
    values, votes = [0.5, 0.5, 1, 1, 1, 1, 1, 1], [0.5] * 8
    assert measured.duels[perfect, opposite].value == 0.75 == -measured.duels[opposite, perfect].value
    assert measured.duels[perfect, vote] == paired_interval(votes, values, resamples=2000)
    (table,) = [
        table for table in model_tables(measured) if table.title.startswith("Gain of a judge over others, N = 4")
    ]
    assert table.header[2:] == ["over perfect", "over opposite", "over majority vote", "over shortest", "over longest"]
    (row,) = [row for row in table.rows if row[0] == "perfect"]
    assert row[1:4] == ["mean (PRM)", "-", "+75.0 [+37.5, +100.0]"]
    assert measure(Judged("m", QUESTIONS, {}), (2,)).duels == {}


def test_records_without_the_field_make_no_split():
    judged = Judged("m", QUESTIONS[:4], {})
    assert measure(judged, (2,), dominance="other").splits == {}


def test_tables(measured):
    accuracy, gain = model_tables(measured)[:2]
    assert [row[0] for row in accuracy.rows[:6]] == [
        "mean sample",
        "oracle",
        "majority vote",
        "shortest",
        "longest",
        "greedy",
    ]
    rows = {tuple(row[:2]): row[2:] for row in accuracy.rows}
    assert rows["oracle", ""] == ["100.0 [100.0, 100.0]", "100.0 [100.0, 100.0]", "-", "-", "0"]
    assert rows["perfect", "last (ORM)"][2:] == ["-", "100.0", "8"]
    assert rows["majority vote", ""][3] == "100.0"
    gains = {tuple(row[:2]): row[2:] for row in gain.rows}
    assert ("mean sample", "") not in gains
    assert gains["oracle", ""][1] == "+50.0 [+50.0, +50.0]"
    assert accuracy.header[-2:] == ["tied, N = 4", "unread"] and gain.header[-1] == "reward, N = 4"


def test_averages(measured):
    table = average_table([measured])
    rows = {row[0]: row[1:] for row in table.rows}
    # Over the two judges: 0.875 and 0.125 where the last scores decide.
    assert rows["last (ORM)"] == ["50.0", "50.0", "-", "50.0"]
    assert list(rows) == ["last (ORM)", "last-2", "last-4", "last-8", "mean (PRM)"]
    assert average_table([measure(FOUR, (2,))]) is None


def test_correlation_with_own_accuracy(measured):
    own = {"perfect": 0.9, "opposite": 0.4, "absent": 0.3}
    found, points = correlations(measured, own)["last"]
    assert points == [("perfect", 0.9, 0.875), ("opposite", 0.4, 0.125)] and found.pairs == 2
    table = correlation_table(measured, own)
    assert table.rows == [["mean (PRM)", "2", "-", "-"], ["last (ORM)", "2", "-", "-"]]
    assert correlation_table(measured, {"absent": 0.3}) is None
    points = pictures(measured, own)["own-accuracy"].series
    assert list(points) == ["mean (PRM)", "last (ORM)"], "of two pairs there is no r"
    assert points["last (ORM)"] == Series([90, 40], [87.5, 12.5], names=("perfect", "opposite"))


def test_pictures(measured):
    drawn = pictures(measured, {})
    assert list(drawn) == ["n-mean", "n-last", "last-n", "dominance"]
    curve = drawn["n-last"]
    assert list(curve.series) == ["mean sample", "majority vote", "oracle", "perfect", "opposite"]
    assert curve.labels == ("2", "4") and curve.axis == "N"
    assert list(curve.series["perfect"].values) == [87.5, 87.5]
    assert drawn["last-n"].labels == ("1", "2", "4", "8", "all")
    assert list(drawn["dominance"].series) == [
        "greedy",
        "mean sample",
        "ORM, mean of the judges",
        "PRM, mean of the judges",
    ]
    assert list(drawn["dominance"].series["mean sample"].values) == [50.0, 50.0]


def test_many_judges_take_several_pictures():
    scores = {f"judge {i}": [[np.array([float(x)]) for x in q.right] for q in QUESTIONS] for i in range(7)}
    drawn = pictures(measure(Judged("m", QUESTIONS, scores), (2, 4)), {})
    assert [name for name in drawn if name.startswith(("n-mean", "last-n"))] == [
        "n-mean-1", "n-mean-2", "n-mean-3", "last-n-1", "last-n-2"
    ]  # fmt: skip
    assert max(len(curve.series) for curve in drawn.values()) == 6


def test_the_folder(finished):
    folder, tables = finished
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [name for name in names if not name.startswith("pictures/")] == [
        "page.html",
        "responses.jsonl",
        "tables.csv",
        "tables.md",
    ]
    assert "pictures/1-n-mean.svg" in names and "pictures/2-last-n.svg" in names
    assert len((folder / "responses.jsonl").read_text().splitlines()) == 16
    text = (folder / "tables.md").read_text()
    assert text.startswith("# Best of N on <data>\n\nTwo models.\n\n**Accuracy of the pick, responses of four**")
    for table in tables:
        assert f"**{table.title}**" in text
    page = (folder / "page.html").read_text()
    assert not re.findall(r"""(?:src|href)=['"](?!data:|#)|url\(|@import|https?:""", page)
    assert page.count("<figure class='curve'>") == len([name for name in names if name.startswith("pictures/")])
    for name in names:
        if name.endswith(".svg"):
            ElementTree.fromstring((folder / name).read_text())


def test_csv(finished):
    rows = list(csv.DictReader((finished[0] / "tables.csv").open()))
    found = {
        (row["model"], row["split"], row["group"], row["judge"], row["aggregation"], row["n"]): row for row in rows
    }
    row = found["four", "all", "", "perfect", "last", "4"]
    assert (row["accuracy"], row["gain"], row["reward"], row["unread"]) == ("0.875", "0.375", "0.875", "8")
    assert found["two", "all", "", "perfect", "last", "2"]["accuracy"] == "0.875"
    assert ("two", "all", "", "perfect", "last", "4") not in found
    assert found["four", "verifier", "mcq", "oracle", "", "4"]["questions"] == "4"


def test_problems_are_printed_and_scores_saved_as_they_come(tmp_path, capsys):
    class Failing(Perfect):
        def __call__(self, questions):
            raise InputError("the endpoint is down")

    settings = run.Settings((2,), tmp_path / "out", "t", ())
    with pytest.raises(InputError, match="down"):
        run.evaluate([FOUR], [Perfect, Failing], read, settings)
    assert "perfect: 2 no score in the reply" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["responses.jsonl"]
    assert '"scores": {"perfect": [[null, null], ' in (tmp_path / "out" / "responses.jsonl").read_text()


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    check_folder(tmp_path / "new")
    for place, message in (("full", "exists already: nothing is overwritten"), ("none/new", "no folder ")):
        with pytest.raises(InputError, match=message):
            check_folder(tmp_path / place)


@pytest.mark.parametrize("text", ["[]", '{"j": "high"}', '{"j": 50}', '{"j": true}', "{", None])
def test_own_accuracies_that_are_none(tmp_path, text):
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"own.json: expected"):
        run.read_own_accuracy(path)
    path.write_text('{"j": 0.5}')
    assert run.read_own_accuracy(path) == {"j": 0.5}
