"""Ranking on numbers counted by hand, and files that do not score exactly the records."""

import pytest

from data_prep.__main__ import main
from data_prep.perplexity.rank import rank, write_subsets
from data_prep.perplexity.scores import Score, to_lines
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource, verify, write_records

pytestmark = pytest.mark.quick

# Perplexities of the first scorer, of the second, and their mean:
#   a  1, 20.09: 10.54      its mean loss, 1.5, is below that of b
#   b  4.95, 4.95: 4.95
#   c  2.72, 2.72: 2.72     as d
#   d  2.72, 2.72: 2.72
#   e  12.18, 1: 6.59
FIRST = {"d": 1.0, "a": 0.0, "b": 1.6, "c": 1.0, "e": 2.5}
SECOND = {"a": 3.0, "b": 1.6, "c": 1.0, "d": 1.0, "e": 0.0}
RANKED = ["a", "e", "b", "c", "d"]


def scores(means):
    return {name: Score(name, 7, mean) for name, mean in means.items()}


@pytest.fixture
def folder(tmp_path):
    """Records d, b, e, a, c, and the files of two scorers."""
    records = [Record(name, (), f"Question {name}?", "1", "digit", trace="One.") for name in "dbeac"]
    write_records(tmp_path / "shards", {"sft": records}, name="tiny", version="1.0.0")
    write(tmp_path / "first.jsonl", FIRST)
    write(tmp_path / "second.jsonl", SECOND)
    return tmp_path


def write(path, means):
    path.write_text(to_lines(list(scores(means).values())))


def run(folder, *keep, files=("first", "second"), out="out"):
    return write_subsets(f"{folder}/shards:sft", [folder / f"{name}.jsonl" for name in files], keep, f"{folder}/{out}")


def ids(folder, split):
    return [record.id for record in RecordSource(f"{folder}/out:{split}")]


def test_the_mean_is_of_perplexities_and_ties_go_by_id():
    assert rank([scores(FIRST), scores(SECOND)]) == RANKED
    assert rank([scores(FIRST)]) == ["e", "b", "c", "d", "a"]


def test_subsets_are_splits_in_the_order_of_the_data(folder):
    assert run(folder, 2, 4) == {"sft_4": 4, "sft_2": 2}
    assert ids(folder, "sft_2") == ["e", "a"]
    assert ids(folder, "sft_4") == ["b", "e", "a", "c"]
    before = {record.id: record for record in RecordSource(f"{folder}/shards:sft")}
    assert all(record == before[record.id] for record in RecordSource(f"{folder}/out:sft_4"))
    verify(folder / "out")


def test_thousands_are_named_as_in_the_paper(tmp_path):
    records = [Record(f"{i:04d}", (), "Q?", "1", "digit", trace="One.") for i in range(1001)]
    write_records(tmp_path / "shards", {"sft": records}, name="tiny", version="1.0.0")
    write(tmp_path / "first.jsonl", {record.id: i / 1000 for i, record in enumerate(records)})
    assert run(tmp_path, 1000, files=("first",)) == {"sft_1k": 1000}
    assert ids(tmp_path, "sft_1k") == [f"{i:04d}" for i in range(1, 1001)]


def test_command(folder, monkeypatch, capsys):
    files = [f"--scores={folder}/first.jsonl", f"--scores={folder}/second.jsonl"]
    options = ["--keep=3", "--keep=1", f"--out={folder}/out"]
    monkeypatch.setattr("sys.argv", ["data_prep", "rank", *files, f"--data={folder}/shards:sft", *options])
    main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == [f"3 records in {folder}/out:sft_3", f"1 records in {folder}/out:sft_1"]
    assert (ids(folder, "sft_3"), ids(folder, "sft_1")) == (["b", "e", "a"], ["a"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gone": ["c", "b"]}, "second.jsonl has no score of 'b' and 1 more of the records of"),
        ({"more": {"f": 1.0}}, "second.jsonl scores 'f' and 0 more that are no records of"),
        ({"text": to_lines([Score("a", 1, 1.0)] * 2)}, "second.jsonl:2: the record 'a' is scored twice"),
        ({"text": None}, "second.jsonl is not a file"),
        ({"keep": (6,)}, "--keep is 6: expected 1 to 5, the records of"),
        ({"keep": (0,)}, "--keep is 0: expected 1 to 5"),
        ({"keep": (2, 3, 2)}, "--keep: 2 is given twice"),
        ({"out": "shards"}, "shards exists already"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(folder, change, sentence):
    path = folder / "second.jsonl"
    means = {name: mean for name, mean in SECOND.items() if name not in change.get("gone", ())}
    write(path, means | change.get("more", {}))
    if "text" in change:
        path.unlink() if change["text"] is None else path.write_text(change["text"])
    with pytest.raises(InputError) as caught:
        run(folder, *change.get("keep", (2,)), out=change.get("out", "out"))
    assert sentence in str(caught.value)
    assert sorted(entry.name for entry in folder.iterdir() if entry.name != path.name) == ["first.jsonl", "shards"]
