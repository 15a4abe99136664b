"""`stats`: numbers counted by hand, and the published make-up at its full size."""

import dataclasses
import json

import pytest
from released_files import (
    REWARD_FOLDERS,
    published_entries,
    published_rewards,
    reward_entry,
    rl_entry,
    sft_entry,
    write_lines,
    write_pictures,
)

from data_prep import stats
from data_prep.released.command import import_released
from vlaa_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "images")
    return tmp_path


def imported(folder, name, entries, **options):
    path = write_lines(folder / f"{name}.json", entries)
    import_released(path, folder / "images", folder / name, **options)
    return str(folder / name)


@pytest.mark.quick
def test_numbers_counted_by_hand(folder, monkeypatch):
    # The table has three of docvqa and one of vizwiz in each column: here the two are swapped.
    table = {
        name: dataclasses.replace(entry, sft={"docvqa": 3, "vizwiz": 1}.get(name, 0), rl=0)
        for name, entry in stats.PUBLISHED.items()
    }
    table["geoqa170k"] = dataclasses.replace(table["geoqa170k"], sft=None)
    monkeypatch.setattr(stats, "PUBLISHED", table)
    sft = [
        sft_entry("vizwiz", 0),  # picture 0
        sft_entry("vizwiz", 5),  # picture 0 again
        sft_entry("vizwiz", 10),  # and again
        sft_entry("docvqa", 0),
        sft_entry("docvqa", 0) | {"image": "docvqa/none.png"},
        sft_entry("clevr_math", 2),
        sft_entry("clevr_math", 2),  # the same question on the same picture
        sft_entry("vg", 3) | {"answer": "<answer>[0.1, 0.2, 0.7, 0.5]</answer>"},  # no trace
        sft_entry("vg", 4) | {"answer": "<think>one two three four five</think><answer>a car</answer>"},
    ]
    rl = [
        rl_entry("vizwiz", 0),  # picture 0 of vizwiz
        rl_entry("vizwiz", 0) | {"question": "Else?"},  # the same id
        rl_entry("docvqa", 4),
        rl_entry("geoqa170k", 1),
    ]
    data = [imported(folder, "one", sft, without_missing_images=True), imported(folder, "two", rl) + ":rl"]
    splits, shared = stats.gather(data)
    first, second = splits
    assert first.location == f"{folder}/one:sft"
    counted = {name: (own.records, own.published, own.difference) for name, own in first.sources.items()}
    assert counted == {
        "clevr_math": (2, 0, 2),
        "geoqa170k": (0, 0, 0),
        "synthesis": (0, 0, 0),
        "arxivqa": (0, 0, 0),
        "docvqa": (1, 3, -2),
        "vizwiz": (3, 1, 2),
        "allava_laion": (0, 0, 0),
        "coco": (0, 0, 0),
        "vg": (2, 0, 2),
    }
    assert first.verifiers == {"digit": 2, "iou": 1, "open_ended": 5}
    assert (first.pictures, first.repeated_ids, first.repeated_questions) == (5, 0, 1)
    # "Step N: look at it." has five words.
    assert (first.sources["vg"].with_trace, first.sources["vg"].median_words) == (1, 5)
    assert first.words == {"least": 5, "median": 5, "mean": 5, "p95": 5, "most": 5}
    assert {name: own.records for name, own in second.sources.items() if own.records} == {
        "vizwiz": 2,
        "docvqa": 1,
        "geoqa170k": 1,
    }
    assert (second.pictures, second.repeated_ids, second.repeated_questions) == (3, 1, 0)
    assert shared == [stats.Shared(f"{folder}/one:sft", f"{folder}/two:rl", 1, (3, 2))]
    lines = stats.table(splits, shared).splitlines()
    assert [line.split() for line in lines if "VizWiz" in line] == [
        ["VizWiz", "3", "1", "+2", "100.0%", "5"],
        ["VizWiz", "2", "0", "+2", "100.0%", "3"],
    ]
    assert lines[11].split() == ["total", "8", "4", "+4", "87.5%", "5"]
    assert lines[-1] == (f"pictures in both {folder}/one:sft and {folder}/two:rl: 1 (in 3 and 2 records)")


@pytest.mark.quick
def test_lengths_of_traces():
    assert stats._spread([]) == {}
    counts = list(range(1, 101))
    assert stats._spread(counts[::-1]) == {"least": 1, "median": 50.5, "mean": 50.5, "p95": 96, "most": 100}


@pytest.mark.quick
def test_process_records_counted_by_hand(folder):
    names = [f"{inside}/{number}.jpg" for inside in [*REWARD_FOLDERS.values(), "new"] for number in range(5)]
    write_pictures(folder / "images", names)
    entries = [
        reward_entry("mavis_geometry", 0, 0),
        reward_entry("mavis_geometry", 0, 1),
        reward_entry("mavis_geometry", 1, 2),
        reward_entry("scienceqa", 0, 3),
        reward_entry("scienceqa", 0, 4) | {"image_path": "new/0.jpg"},
    ]
    (split,), shared = stats.gather([imported(folder, "reward", entries)])
    assert split.questions == {
        "mavis_geometry": (2, 3_093),
        "geoqa170k": (0, 8_063),
        "clevr_math": (0, 957),
        "a_okvqa": (0, 2_044),
        "scienceqa": (1, 2_769),
        "unknown": (1, None),
    }
    assert split.records["mavis_geometry"] == (3, 25_829)
    assert split.records["unknown"] == (1, None)
    assert shared == []
    lines = stats.table([split], shared).splitlines()
    assert lines[-1].split() == ["total", "4", "16,926", "-16,922", "5", "73,560", "-73,555"]
    assert lines[-2].split() == ["unknown", "1", "-", "-", "1", "-", "-"]


@pytest.mark.quick
def test_a_split_named_twice_is_refused(folder):
    data = imported(folder, "one", [sft_entry("docvqa")])
    with pytest.raises(InputError, match="named twice"):
        stats.gather([data, f"{data}:sft"])
    with pytest.raises(InputError, match=r"no split 'rl'"):
        stats.gather([f"{data}:rl"])


@pytest.mark.slow
@pytest.mark.parametrize(("column", "total"), [("sft", 126_413), ("rl", 25_195)])
def test_the_published_make_up_has_no_difference(folder, column, total):
    (split,), _ = stats.gather([imported(folder, column, published_entries(column))])
    assert {own.difference for own in split.sources.values()} == {0}
    assert sum(own.records for own in split.sources.values()) == total
    report = json.loads((folder / column / "report.json").read_text())
    assert report["skipped"] == []
    if column == "rl":
        assert split.verifiers == {"digit": 2_000, "iou": 4_000, "math": 6_696, "mcq": 7_499, "open_ended": 5_000}


@pytest.mark.slow
def test_the_published_process_records_have_no_difference(folder):
    names = [f"{inside}/{number}.jpg" for inside in REWARD_FOLDERS.values() for number in range(5)]
    write_pictures(folder / "images", names)
    (split,), _ = stats.gather([imported(folder, "reward", published_rewards())])
    for counts in (split.questions, split.records):
        assert all(counted == published for counted, published in counts.values())
    assert sum(counted for counted, _ in split.records.values()) == 73_560
    assert sum(counted for counted, _ in split.questions.values()) == 16_926
