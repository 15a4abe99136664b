"""Reading pictures by address: what comes back, and what a hostile name, archive or picture costs."""

import io
import itertools
import os
import pathlib
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image
from source_fixtures import encoded, picture, write_table

from data_prep import pictures
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

PNG, JPEG = picture("a", "PNG", (40, 30)), picture("b", "JPEG", (30, 40))


@pytest.fixture
def folder(tmp_path):
    """`source/` with pictures in every kind of container, `outside.png` beside it."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.png").write_bytes(PNG)
    (source / "sub" / "b.jpg").write_bytes(JPEG)
    (tmp_path / "outside.png").write_bytes(PNG)
    with tarfile.open(source / "images.tar", "w") as archive:
        add(archive, "./train/a.png", PNG)
        add(archive, "train/cut.jpg", JPEG[:-50])
        add(archive, "../outside.png", PNG)
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("dir", tarfile.DIRTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "train/a.png"
            archive.addfile(entry)
    with zipfile.ZipFile(source / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/b.jpg", JPEG)
        archive.writestr("train/", b"")
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "train/b.jpg")
    write_table(source / "table.parquet", [{"id": n, "image": "a"} for n in "abc"], [PNG, JPEG, b"no picture"])
    return source


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("address", "content"),
    [
        ("a.png", PNG),
        ("sub/b.jpg", JPEG),
        ("images.tar!train/a.png", PNG),
        ("images.zip!train/b.jpg", JPEG),
        ("table.parquet!0", PNG),
        ("table.parquet!1", JPEG),
    ],
)
def test_the_bytes_come_back_and_the_header_gives_the_size(folder, address, content):
    assert pictures.read(folder, address) == content
    assert pictures.size(folder, address) == ((40, 30) if content == PNG else (30, 40))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("../outside.png", "leaves its folder"),
        ("sub/../../outside.png", "leaves its folder"),
        ("sub/../a.png", "leaves its folder"),
        ("/etc/hostname", "leaves its folder"),
        ("a.png\0.jpg", "leaves its folder"),
        ("", "leaves its folder or is none"),
        ("../source/images.tar!train/a.png", "leaves its folder"),
        ("images.tar!../outside.png", "leaves its folder"),
        ("images.tar!/train/a.png", "leaves its folder"),
        ("sub", "is no file"),
        ("missing.png", "no such file"),
        ("x" * 5000, "cannot be read"),
        ("images.tar!link.png", "no plain file"),
        ("images.tar!hard.png", "no plain file"),
        ("images.tar!dir", "no plain file"),
        ("images.tar!train/none.png", "no such member among its 6"),
        ("images.tar!train/cut.jpg", "undecodable image: image file is truncated"),
        ("images.zip!link.jpg", "no plain file"),
        ("images.zip!train/", "no plain file"),
        ("none.zip!a", "no such file"),
        ("a.png!train", "no such file"),
        ("table.parquet!3", "no such row"),
        ("table.parquet!-1", "a row is a number from 0"),
        ("table.parquet!2", "undecodable image"),
    ],
)
def test_an_address_that_names_no_sound_picture_is_refused(folder, address, reason):
    with pytest.raises(InputError, match=reason):
        pictures.read(folder, address)


def test_a_linked_folder_is_read_but_no_link_of_a_file_leads_out(folder):
    away = folder.parent / "coco"
    away.mkdir()
    (away / "c.png").write_bytes(PNG)
    (folder / "coco").symlink_to(away)
    (folder / "same.png").symlink_to("a.png")
    (folder / "out.png").symlink_to("../outside.png")
    (away / "out.png").symlink_to("../outside.png")
    assert pictures.read(folder, "coco/c.png") == pictures.read(folder, "same.png") == PNG
    for address in ("out.png", "coco/out.png"):
        with pytest.raises(InputError, match="a link out of its folder"):
            pictures.read(folder, address)


def bomb(width, height):
    """A PNG that claims many pixels and holds none."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (5001, 10_000), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_is_decoded(folder, size):
    (folder / "bomb.png").write_bytes(bomb(*size))
    tracemalloc.start()
    for read in (pictures.read, pictures.size):
        with pytest.raises(InputError, match="has more than 50,000,000 pixels"):
            read(folder, "bomb.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_picture_at_the_bound_is_decoded(folder):
    (folder / "large.png").write_bytes(bomb(5000, 10_000))
    with pytest.raises(InputError, match="image file is truncated"):
        pictures.read(folder, "large.png")


def test_too_many_bytes_are_not_read(folder, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 50)
    for address in ("a.png", "images.tar!train/a.png", "images.zip!train/b.jpg", "table.parquet!0"):
        with pytest.raises(InputError, match="at most 50 are read"):
            pictures.read(folder, address)


def test_the_size_is_that_of_the_upright_picture(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=exif)
    (folder / "turned.jpg").write_bytes(buffer.getvalue())
    assert pictures.size(folder, "turned.jpg") == (10, 20)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 1 1 255\n???", PNG[:40]],
)
def test_what_is_no_picture_is_refused(folder, content):
    (folder / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="undecodable image"):
        pictures.read(folder, "a.png")


def test_damaged_archives_are_refused_and_looked_at_once(folder, monkeypatch):
    whole = (folder / "images.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[:700])
    (folder / "cut.zip").write_bytes((folder / "images.zip").read_bytes()[:100])
    with tarfile.open(folder / "gzip.tar", "w:gz") as archive:
        add(archive, "a.png", PNG)
    for name in ("cut.tar", "cut.zip", "gzip.tar"):
        with pytest.raises(InputError, match="no archive that can be read"):
            pictures.read(folder, f"{name}!a.png")
    monkeypatch.setattr(tarfile, "open", None)
    with pytest.raises(InputError, match="no archive that can be read"):
        pictures.read(folder, "cut.tar!a.png")
    (folder / "cut.parquet").write_bytes((folder / "table.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match="no parquet file"):
        pictures.read(folder, "cut.parquet!0")


def test_an_archive_is_indexed_once_until_it_changes(folder, monkeypatch):
    opened = []
    whole = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args: opened.append(args) or whole(*args))
    for _ in range(3):
        assert pictures.read(folder, "images.tar!train/a.png") == PNG
    assert len(opened) == 1
    with whole(folder / "images.tar", "w") as archive:
        add(archive, "train/a.png", JPEG)
    os.utime(folder / "images.tar", ns=(1, 1))
    assert pictures.read(folder, "images.tar!train/a.png") == JPEG
    assert len(opened) == 2


def test_a_table_is_read_by_row_group(tmp_path, monkeypatch):
    from pyarrow import parquet

    contents = [picture(str(number), "PNG", (8 + number, 20)) for number in range(6)]
    write_table(tmp_path / "table.parquet", [{"id": str(number), "image": ""} for number in range(6)], contents)
    groups = []
    read = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda self, group, **rest: groups.append(group) or read(self, group, **rest),
    )
    assert [pictures.read(tmp_path, pictures.row("table.parquet", number)) for number in range(6)] == contents
    assert groups == [0, 1, 2]


def test_locate_prefers_files_then_archives_then_the_first_name(folder):
    (folder / "train").mkdir()
    assert pictures.locate(folder, ("train/a.png", "other.png")) == "images.tar!train/a.png"
    assert pictures.locate(folder, ("other.png", "train/b.jpg")) == "images.zip!train/b.jpg"
    assert pictures.locate(folder, ("other.png", "more.png")) == "other.png"
    assert pictures.locate(folder, ("../outside.png", "a.png")) == "a.png"
    assert pictures.locate(folder, ("../outside.png",)) == "../outside.png"
    (folder / "train" / "a.png").write_bytes(JPEG)
    assert pictures.locate(folder, ("train/a.png",)) == "train/a.png"


SECRET = encoded(Image.new("RGB", (3, 3), "red"), "PNG")
PARTS = st.sampled_from(
    ["..", ".", "", "a.png", "sub", "b.jpg", "images.tar", "table.parquet", "!", "/", "\0", "0", "x"]
)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(parts=st.lists(PARTS, max_size=6), joint=st.sampled_from(["/", "!", ""]), free=st.text(max_size=5))
def test_no_address_gives_a_picture_from_outside(folder, parts, joint, free):
    (folder.parent / "outside.png").write_bytes(SECRET)
    for name in itertools.chain([joint.join(parts), joint.join([*parts, free])], [f"{joint.join(parts)}/outside.png"]):
        try:
            assert pictures.read(folder, name) in (PNG, JPEG)
        except InputError as error:
            assert str(error).startswith("picture ")


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_damaged_byte_is_an_input_error_or_nothing(tmp_path, place, value):
    for content in (PNG, JPEG):
        damaged = bytearray(content)
        damaged[place % len(content)] = value
        pathlib.Path(tmp_path / "damaged").write_bytes(damaged)
        try:
            assert pictures.read(tmp_path, "damaged") == damaged
        except InputError:
            pass
