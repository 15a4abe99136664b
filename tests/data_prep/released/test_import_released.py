"""The command `import`: whole files to shards with a report, refusals that write nothing."""

import json
import sys

import pytest
from PIL import Image
from released_files import reward_entry, rl_entry, sft_entry, write_lines, write_pictures

from data_prep.__main__ import main
from data_prep.released import boxes
from data_prep.released.command import REPEATED_ID, import_released
from vlaa_jax.errors import InputError, run_command
from vlaa_jax.processing.records import ProcessRecord
from vlaa_jax.processing.shards import RecordSource

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "images")
    return tmp_path


def run(folder, entries, out="out", **options):
    path = write_lines(folder / "file.json", entries)
    return import_released(path, folder / "images", folder / out, **options)


def report(folder, out="out"):
    return json.loads((folder / out / "report.json").read_text())


def refused(folder, *words, out="out", **options):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        import_released(folder / "file.json", folder / "images", folder / out, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert sorted(folder.rglob("*")) == before
    return str(error.value)


def test_an_rl_file(folder):
    sources = ["clevr_math", "geoqa170k", "synthesis", "arxivqa", "docvqa", "vizwiz", "allava_laion", "coco", "vg"]
    entries = [rl_entry(source, number) for number, source in enumerate(sources)]
    entries += [
        rl_entry("docvqa", 4) | {"question": "Another?"},
        rl_entry("geoqa170k", 1, gold="(b)", verifier_type="x"),
    ]
    table = run(folder, entries)
    records = list(RecordSource(f"{folder}/out:rl"))
    assert [record.source for record in records] == [*sources, "docvqa", "geoqa170k"]
    assert [record.id for record in records][-2:] == ["docvqa-4#2", "geoqa170k-1#2"]
    assert records[-2].metadata["id"] == "docvqa-4"
    assert all(record.trace and len(record.images) == 1 for record in records)
    found = report(folder)
    assert found["verifiers"] == {"digit": 1, "iou": 2, "math": 1, "mcq": 3, "open_ended": 4}
    assert found["sources"]["geoqa170k"] == {
        "read": 2,
        "written": 2,
        "skipped": {},
        "repairs": {"letter in lower case": 1, "letter with marks": 1, REPEATED_ID: 1},
    }
    assert found["remarks"] == {"unknown verifier_type": {"x": 1}}
    assert (found["file"], found["split"], found["skipped"], found["missing_pictures"]) == ("file.json", "rl", [], {})
    assert found["boxes"]["vg"] == {"space": "normalised", "padded": False, "boxes": 1, "oblong": 1, "outside": 0}
    for words in ("geoqa170k, repeated id, numbered", "unknown verifier_type: x", "total", "11"):
        assert words in table


HOSTILE = [
    '{"id": "clevr_math-1", "image": ',
    "[]",
    rl_entry("clevr_math") | {"question": "x" * 10_000_000},
    rl_entry("clevr_math") | {"question": "nul \0"},
    rl_entry("clevr_math") | {"image": "clevr_math/bomb.png"},
    rl_entry("clevr_math") | {"image": "clevr_math/cut.jpg"},
    rl_entry("clevr_math") | {"image": "../outside.png"},
    rl_entry("clevr_math") | {"image": "/etc/passwd", "id": ""},
    rl_entry("clevr_math") | {"meta": "(" * 400_000},
]


def test_hostile_entries_cost_themselves(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "images/clevr_math/bomb.png")
    Image.new("RGB", (64, 64), "red").save(folder / "images/clevr_math/cut.jpg")
    content = (folder / "images/clevr_math/cut.jpg").read_bytes()
    (folder / "images/clevr_math/cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "outside.png").write_bytes((folder / "images/clevr_math/0.png").read_bytes())
    good = [rl_entry("clevr_math", number) for number in range(3)]
    entries = [*HOSTILE[:5], *good[:2], *HOSTILE[5:], good[2]]
    run(folder, entries, max_skipped=1)
    records = list(RecordSource(f"{folder}/out:rl"))
    assert [record.id for record in records] == ["clevr_math-0", "clevr_math-1", "clevr_math-0#2", "clevr_math-2"]
    found = report(folder)
    assert [entry["kind"] for entry in found["skipped"]] == [
        "no JSON object",
        "no JSON object",
        "missing or wrong field",
        "missing or wrong field",
        "unreadable picture",
        "unreadable picture",
        "unreadable picture",
        "missing picture",
    ]
    assert [entry["id"] for entry in found["skipped"]][:3] == ["line 1", "line 2", "clevr_math-0"]
    assert found["sources"]["clevr_math"]["repairs"] == {"meta kept as text": 1, REPEATED_ID: 1}


def test_too_much_left_out_is_refused(folder):
    entries = [rl_entry("clevr_math", number, gold="three" if number < 3 else None) for number in range(100)]
    entries += [rl_entry("docvqa", number) for number in range(100)]
    write_lines(folder / "file.json", entries)
    message = refused(folder, "--max-skipped=0.02", "clevr_math: 3 of 100", "clevr_math-0: ", "not one integer")
    assert "docvqa" not in message
    import_released(folder / "file.json", folder / "images", folder / "out", max_skipped=0.03)
    assert len(RecordSource(f"{folder}/out:rl")) == 197
    skipped = report(folder)["skipped"]
    assert [entry["id"] for entry in skipped] == ["clevr_math-0", "clevr_math-1", "clevr_math-2"]
    assert skipped[0]["kind"] == "gold that its verifier cannot read" and skipped[0]["source"] == "clevr_math"
    # A line without a source is measured against the whole file.
    write_lines(folder / "file.json", [*entries[3:], "damaged", "damaged", "damaged"])
    import_released(folder / "file.json", folder / "images", folder / "two")
    write_lines(folder / "file.json", [*entries[3:], *["damaged"] * 5])
    refused(folder, "unknown: 5 of 202", out="three")
    write_lines(folder / "file.json", entries[:3])
    refused(folder, "clevr_math: 3 of 3", out="three")


def test_missing_pictures_stop_the_import_until_told(folder):
    kept = [sft_entry("docvqa", number) for number in range(60)]
    coco = [sft_entry("coco", 1) | {"image": "coco/train2017/none.jpg"} for _ in range(2)]
    genome = [sft_entry("vg", 1) | {"image": f"vg/{inside}/none.jpg"} for inside in ("VG_100K", "VG_100K", "VG_100K_2")]
    write_lines(folder / "file.json", [*kept, *coco, sft_entry("coco", 1), *genome])
    message = refused(folder, "--without-missing-images")
    assert message.splitlines()[1:] == [
        "  coco/train2017: 2 of 3 records, to be had from http://images.cocodataset.org/zips/train2017.zip",
        "  vg/VG_100K: 2 of 2 records, to be had from https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
        "  vg/VG_100K_2: 1 of 1 records, to be had from https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
    ]
    import_released(folder / "file.json", folder / "images", folder / "out", without_missing_images=True)
    assert len(RecordSource(f"{folder}/out:sft")) == 61
    assert report(folder)["missing_pictures"] == {"coco/train2017": 2, "vg/VG_100K": 2, "vg/VG_100K_2": 1}
    assert report(folder)["sources"]["vg"] == {
        "read": 3,
        "written": 0,
        "skipped": {"missing picture": 3},
        "repairs": {},
    }
    # A single one that is missing is a record left out, as any other.
    write_lines(folder / "file.json", [*kept, sft_entry("docvqa", 1) | {"image": "docvqa/none.png"}])
    import_released(folder / "file.json", folder / "images", folder / "two")
    assert report(folder, "two")["sources"]["docvqa"]["skipped"] == {"missing picture": 1}


def test_boxes_are_measured_over_the_file(folder):
    write_pictures(folder / "images", ["vg/VG_100K/wide.png"], size=(40, 30))
    entries = []
    for number in range(60):
        box = f"[0.{number + 10}, 0.2, 0.9, 0.8]"
        entries.append(rl_entry("vg", number, gold=box) | {"image": "vg/VG_100K/wide.png"})
    run(folder, entries)
    assert report(folder)["boxes"]["vg"] == {
        "space": "normalised",
        "padded": True,
        "boxes": 60,
        "oblong": 60,
        "outside": 0,
    }
    assert RecordSource(f"{folder}/out:rl")[0].answer == "[0.1, 0.1, 0.9, 0.9]"
    assert boxes.unpadded("[0.1, 0.2, 0.9, 0.8]", (40, 30)) == "[0.1, 0.1, 0.9, 0.9]"


def test_process_records(folder):
    write_pictures(folder / "images", ["MAVIS_Geometry/0.jpg", "ScienceQA/1.jpg"])
    entries = [
        reward_entry("mavis_geometry", 0, 0, 0.2),
        reward_entry("scienceqa", 1, 1, "1.0"),
        reward_entry("mavis_geometry", 0, 2, 2),
        reward_entry("mavis_geometry", 0, 0, 1),
    ]
    run(folder, entries, max_skipped=0.5)
    records = list(RecordSource(f"{folder}/out:train", ProcessRecord))
    assert [record.value for record in records] == [pytest.approx(0.2), 1, 1]
    assert [record.id.rpartition("/")[2] for record in records] == ["0", "1", "0#2"]
    assert records[0].id.rpartition("/")[0] == records[2].id.rpartition("/")[0]
    found = report(folder)
    assert found["sources"]["mavis_geometry"] == {
        "read": 3,
        "written": 2,
        "skipped": {"value that is no number from 0 to 1": 1},
        "repairs": {REPEATED_ID: 1},
    }
    assert (found["verifiers"], found["split"]) == ({}, "train")


def test_the_same_file_gives_the_same_bytes(folder):
    entries = [
        sft_entry(source, number) for number in range(20) for source in ("docvqa", "clevr_math", "vg", "arxivqa")
    ]
    run(folder, entries, "one")
    path = write_lines(folder / "array.json", [json.dumps(entries)])
    path.rename(folder / "file.json")
    import_released(folder / "file.json", folder / "images", folder / "two")
    names = sorted(path.name for path in (folder / "one").iterdir())
    assert names == [
        "dataset_info.json",
        "features.json",
        "manifest.json",
        "report.json",
        "vlaa_thinking-sft.array_record-00000-of-00001",
    ]
    for name in names:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes(), name


def test_wrong_arguments_are_named(folder):
    write_lines(folder / "file.json", [sft_entry("docvqa")])
    refused(folder, "--max-skipped is 2", max_skipped=2)
    refused(folder, "'a-b' is no name", split="a-b")
    (folder / "there").mkdir()
    refused(folder, "exists already", out="there")
    with pytest.raises(InputError, match=r"--file: .*none.json is not a file"):
        import_released(folder / "none.json", folder / "images", folder / "out")
    with pytest.raises(InputError, match=r"--images: .*none is not a folder"):
        import_released(folder / "file.json", folder / "none", folder / "out")
    write_lines(folder / "file.json", [{"picture": 1}])
    refused(folder, "found picture")


def test_command(folder, monkeypatch, capsys):
    write_lines(folder / "file.json", [sft_entry("docvqa"), sft_entry("coco")])

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["data_prep", *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(main)
        return end.value.code, *capsys.readouterr()

    paths = [f"--file={folder}/file.json", f"--images={folder}/images", f"--out={folder}/out"]
    code, out, log = command("import", *paths, "--split=train")
    assert (code, out.splitlines()[3].split()) == (0, ["total", "2", "2", "0"])
    assert log.splitlines() == [f"looking through {folder}/file.json", "reading 2 records and their pictures"]
    code, out, log = command("import", *paths)
    assert (code, out) == (2, "") and log.startswith("error: ") and "exists already" in log
    code, out, log = command("stats", f"--data={folder}/out", f"--json={folder}/stats.json")
    assert code == 0 and out.startswith(f"{folder}/out:train\n")
    (split,) = json.loads((folder / "stats.json").read_text())["splits"]
    assert split["sources"]["coco"] == {
        "records": 1,
        "published": None,
        "difference": None,
        "with_trace": 1,
        "median_words": 5,
    }
    assert command("stats", f"--data={folder}/out", "--json=/none/x")[0] == 2
