"""The nine sources in miniature, each in its publisher's layout: `python tests/source_fixtures.py --out=DIR`.

Annotations stand in `tests/data_prep/sources/`, a folder a publication, with `ORIGIN.md` on where the layout was read.
Pictures, archives and tables are made here, the same bytes each time. Every source has at least four usable questions.
"""

import argparse
import hashlib
import io
import json
import pathlib
import shutil
import tarfile
import zipfile

from PIL import Image, ImageDraw

ANNOTATIONS = pathlib.Path(__file__).parent / "data_prep" / "sources"

COLOURS = {
    "blue": "#2a4bd7", "red": "#ad2323", "brown": "#814a19", "green": "#1d6914", "cyan": "#29d0d0", "yellow": "#ffee33",
    "purple": "#8126c0", "gray": "#575757",
}  # fmt: skip
SIZES = ((64, 48), (48, 64), (64, 64))


def write_all(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Makes every source's folder below `folder`; COCO and VisualGenome share theirs."""
    folders = {name: folder / name for name in BUILDERS}
    for name, build in BUILDERS.items():
        folders[name].mkdir(parents=True)
        build(folders[name])
    shared = folders.pop("llava_cot")
    return folders | {"coco": shared, "vg": shared}


def rows(name: str) -> list[dict]:
    """Rows of a table."""
    return json.loads((ANNOTATIONS / name / "rows.json").read_text())


def write_table(path: pathlib.Path, entries: list[dict], encoded: list[bytes]) -> None:
    """A parquet table as the `datasets` library writes one with pictures, two rows a row group."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [
        entry | {"image": {"bytes": content, "path": entry["image"]}}
        for entry, content in zip(entries, encoded, strict=True)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(columns), path, row_group_size=2)


def picture(name: str, kind: str, size: tuple[int, int] | None = None) -> bytes:
    """A picture that belongs to a name: a few shapes on a plain ground."""
    seed = hashlib.sha256(name.encode()).digest()
    image = Image.new("RGB", size or SIZES[seed[0] % len(SIZES)], "#e8e8e8")
    draw = ImageDraw.Draw(image)
    for number in range(3):
        x, y, width, colour = seed[4 * number + 1 : 4 * number + 5]
        left, top = x % (image.width - 16), y % (image.height - 16)
        box = (left, top, left + 6 + width % 10, top + 6 + width % 10)
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape(box, fill=list(COLOURS.values())[colour % len(COLOURS)])
    return encoded(image, kind)


def encoded(image: Image.Image, kind: str) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def scene(objects: list[dict]) -> bytes:
    """A scene of CLEVR, seen from above."""
    image = Image.new("RGB", (80, 60), "#c8c8c8")
    draw = ImageDraw.Draw(image)
    for place, item in enumerate(objects):
        half = 8 if item["size"] == "large" else 5
        box = (20 * place + 10 - half, 30 - half, 20 * place + 10 + half, 30 + half)
        shape = draw.ellipse if item["shape"] == "sphere" else draw.rectangle
        shape(box, fill=COLOURS[item["color"]], outline="white" if item["material"] == "metal" else None)
    return encoded(image, "PNG")


def clevr_math(folder: pathlib.Path) -> None:
    scenes = json.loads((ANNOTATIONS / "clevr_math" / "CLEVR_train_scenes.json").read_text())["scenes"]
    objects = {entry["image_filename"]: entry["objects"] for entry in scenes}
    lone = [{"size": "large", "color": "red", "material": "rubber", "shape": "cylinder"}]
    entries = rows("clevr_math")
    pictures = [scene(objects.get(entry["image"], lone)) for entry in entries]
    write_table(folder / "CLEVR-Math(MathV360K)" / "train-00000-of-00001.parquet", entries, pictures)
    copy("clevr_math/CLEVR_train_scenes.json", folder / "CLEVR_train_scenes.json")


def geoqa170k(folder: pathlib.Path) -> None:
    entries = rows("geoqa170k")
    for number, half in enumerate((entries[:3], entries[3:])):
        pictures = [picture(entry["image"], "PNG") for entry in half]
        write_table(folder / "geo170k(qa)" / f"train-0000{number}-of-00002.parquet", half, pictures)


def synthesis(folder: pathlib.Path) -> None:
    path = copy("synthesis/synthesis.jsonl", folder / "Synthesis" / "synthesis.jsonl")
    for entry in map(json.loads, path.read_text().splitlines()):
        if entry["image_url_2"]:
            write(path.parent / entry["image_url_2"], picture(entry["image_url_2"], "PNG"))


def arxivqa(folder: pathlib.Path) -> None:
    """With its archive as it is after `gunzip`."""
    path = copy("arxivqa/arxivqa.jsonl", folder / "arxivqa.jsonl")
    names = {json.loads(line)["image"] for line in path.read_text().splitlines()}
    with tarfile.open(folder / "images.tar", "w") as archive:
        for name in sorted(names):
            content = picture(name, "JPEG")
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def docvqa(folder: pathlib.Path) -> None:
    name = "spdocvqa_qas/train_v1.0_withQT.json"
    path = copy(f"docvqa/{name}", folder / name)
    for entry in json.loads(path.read_text())["data"]:
        page = pathlib.Path(entry["image"]).name
        write(folder / "spdocvqa_images" / page, picture(page, "PNG", (48, 64)))


def vizwiz(folder: pathlib.Path) -> None:
    path = copy("vizwiz/Annotations/train.json", folder / "Annotations" / "train.json")
    for entry in json.loads(path.read_text()):
        write(folder / "train" / entry["image"], picture(entry["image"], "JPEG"))


def allava_laion(folder: pathlib.Path) -> None:
    home = folder / "allava_laion"
    for kind in ("Instruct", "Caption"):
        path = copy(f"allava_laion/allava_laion/ALLaVA-{kind}-LAION-4V.json", home / f"ALLaVA-{kind}-LAION-4V.json")
    names = [entry["image"].removeprefix("allava_laion/") for entry in json.loads(path.read_text())]
    write_zip(home / "images.zip", {name: picture(name, "JPEG") for name in names})


def llava_cot(folder: pathlib.Path) -> None:
    path = copy("llava_cot/train.jsonl", folder / "train.jsonl")
    names = sorted({json.loads(line)["image"] for line in path.read_text().splitlines()})
    write_zip(folder / "image.zip", {name: picture(name, "JPEG", COT_SIZES.get(name)) for name in names})


# Wide, high and square pictures; boxes of the annotations belong to these.
COT_SIZES = {
    "coco/train2017/000000000001.jpg": (64, 48), "coco/train2017/000000000009.jpg": (48, 64),
    "coco/train2017/000000000025.jpg": (64, 64), "vg/VG_100K_2/2400001.jpg": (64, 48), "vg/VG_100K/7.jpg": (48, 64),
    "vg/VG_100K/8.jpg": (64, 64),
}  # fmt: skip

BUILDERS = {
    "clevr_math": clevr_math,
    "geoqa170k": geoqa170k,
    "synthesis": synthesis,
    "arxivqa": arxivqa,
    "docvqa": docvqa,
    "vizwiz": vizwiz,
    "allava_laion": allava_laion,
    "llava_cot": llava_cot,
}


def copy(annotation: str, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ANNOTATIONS / annotation, path)
    return path


def write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> None:
    """Without the time of day."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to make the sources' folders in")
    for source, path in write_all(parser.parse_args().out).items():
        print(f"{source}: {path}")
