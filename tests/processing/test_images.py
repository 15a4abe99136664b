"""Images against transformers' own PIL processor, and files that are none."""

import io
import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import Qwen2VLImageProcessorPil

from vlaa_jax.errors import InputError
from vlaa_jax.processing.images import ImageProcessor, Resize, decode, read_size

pytestmark = pytest.mark.quick

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def compare(ours, encoded, theirs):
    """Patches, grid and sizes of one encoded image are those of transformers' processor on the upright image."""
    image = decode(encoded)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    expected = theirs(upright, return_tensors="np")
    resize = ours.resize(image.size)
    assert resize.original == read_size(encoded) == upright.size
    assert [ours.grid(resize)] == [tuple(grid) for grid in expected["image_grid_thw"].tolist()]
    assert resize.resized == tuple(14 * side for side in expected["image_grid_thw"][0, :0:-1].tolist())
    patches = ours.patches([image])
    assert patches.dtype == np.float32 and patches.shape[1] == ours.patch_values == 1176
    np.testing.assert_array_equal(patches, expected["pixel_values"])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The pixel limits of the released checkpoints."""
    directory = tmp_path_factory.mktemp("published")
    values = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    values |= {"image_mean": MEAN, "image_std": STD, "image_processor_type": "Qwen2VLImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    return directory


@hypothesis.given(
    size=st.tuples(st.integers(1, 180), st.integers(1, 180)),
    limits=st.sampled_from([(3136, 12845056), (56 * 56, 84 * 84), (784, 784), (200 * 200, 300 * 300)]),
    seed=st.integers(0, 99),
)
@hypothesis.example((1, 1), (3136, 12845056), 0)
@hypothesis.example((1, 160), (3136, 12845056), 0)
@hypothesis.example((13, 7), (784, 784), 0)
@hypothesis.example((56, 84), (3136, 12845056), 0)
@hypothesis.settings(deadline=None, max_examples=60)
def test_equals_transformers(published, size, limits, seed):
    ours = ImageProcessor(published, min_pixels=limits[0], max_pixels=limits[1])
    theirs = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
    compare(ours, saved(Image.fromarray(noise(*size, seed=seed))), theirs)


def odd_files():
    rgba = Image.fromarray(noise(60, 45, 4), "RGBA")
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette = rgb.quantize(16)
    sixteen = Image.fromarray(noise(60, 45, 1)[..., 0].astype(np.uint16) * 3)
    yield "palette", saved(palette)
    yield "palette with a transparent colour", saved(palette, transparency=3)
    yield "palette with alpha", saved(rgba.quantize(16))
    yield "gif, first of two frames", saved(palette, "GIF", save_all=True, append_images=[grey.quantize(4)])
    yield "alpha", saved(rgba)
    yield "grey with alpha", saved(rgba.convert("LA"))
    yield "rgb with a transparent colour", saved(rgb, transparency=tuple(rgb.getpixel((3, 3))))
    yield "grey", saved(grey)
    yield "one bit", saved(grey.convert("1"))
    yield "16 bits", saved(sixteen)
    yield "cmyk", saved(rgb.convert("CMYK"), "JPEG")
    yield "grey jpeg", saved(grey, "JPEG")
    yield "webp", saved(rgba, "WEBP", lossless=True)
    yield "bmp", saved(rgb, "BMP")
    for kind, orientation in itertools.product(("JPEG", "PNG", "TIFF", "WEBP"), (1, 3, 6, 8)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"{kind} turned {orientation}", saved(rgb, kind, exif=exif)


@pytest.mark.parametrize("encoded", [pytest.param(encoded, id=name) for name, encoded in odd_files()])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_odd_files_equal_transformers(published, encoded):
    compare(ImageProcessor(published), encoded, Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056))


def test_patch_order_and_values_without_resizing(published):
    """By hand: merged row, merged column, row and column inside the token; channel, frame, pixel row, pixel column."""
    pixels = noise(84, 56)
    patches = ImageProcessor(published).patches([Image.fromarray(pixels)])
    expected = []
    for token_row, token_column, row, column in itertools.product(range(2), range(3), range(2), range(2)):
        top, left = 14 * (2 * token_row + row), 14 * (2 * token_column + column)
        patch = (pixels[top : top + 14, left : left + 14] / 255 - np.asarray(MEAN)) / np.asarray(STD)
        expected.append(np.repeat(patch.transpose(2, 0, 1)[:, None], 2, axis=1).ravel())
    np.testing.assert_allclose(patches, np.asarray(expected), atol=1e-6)


def test_resizing_is_within_a_grey_level_of_pillows_bicubic(published):
    image = Image.fromarray(noise(75, 50))
    patches = ImageProcessor(published).patches([image])
    plain = ImageProcessor(published).patches([image.resize((84, 56), Image.Resampling.BICUBIC)])
    assert patches.shape == plain.shape == (24, 1176)
    assert np.abs(patches - plain).max() <= 1 / 255 / min(STD)


def test_several_images_follow_each_other(published):
    processor = ImageProcessor(published)
    images = [Image.fromarray(noise(width, 56, seed=width)) for width in (56, 84, 112)]
    joined = np.concatenate([processor.patches([image]) for image in images])
    np.testing.assert_array_equal(processor.patches(images), joined)


@pytest.mark.parametrize(
    ("original", "resized"),
    [
        ((1024, 768), (1036, 756)),
        ((56, 56), (56, 56)),
        ((70, 42), (56, 56)),  # 2.5 and 1.5 factors: halves go to the even neighbour
        ((1, 160), (28, 728)),
        ((4000, 3000), (4004, 2996)),
        ((6000, 4000), (4368, 2912)),
    ],
)
def test_resize_rule_of_the_released_limits(published, original, resized):
    assert ImageProcessor(published).resize(original) == Resize(original, resized)


@pytest.fixture(scope="module")
def processors(published):
    limits = ((784, 784 * 4), (784 * 4, 784 * 16384), (784 * 100, 784 * 1280))
    return [ImageProcessor(published, min_pixels=low, max_pixels=high) for low, high in limits]


@hypothesis.given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 2))
@hypothesis.settings(deadline=None)
def test_resize_keeps_limits_and_aspect(processors, width, height, which):
    processor = processors[which]
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(InputError, match=f"image of {width}x{height} pixels: absolute aspect ratio"):
            processor.resize((width, height))
        return
    new = processor.resize((width, height)).resized
    assert new[0] % 28 == new[1] % 28 == 0 and min(new) >= 28
    assert processor.min_pixels <= new[0] * new[1]
    if min(new) > 28:
        assert new[0] * new[1] <= processor.max_pixels
        # One scale brings both sides to within one factor of the result.
        assert max((new[0] - 28) / width, (new[1] - 28) / height) <= min((new[0] + 28) / width, (new[1] + 28) / height)


def test_limits_of_the_checkpoint_and_their_override(published, tmp_path):
    assert (ImageProcessor(published).min_pixels, ImageProcessor(published).max_pixels) == (3136, 12845056)
    assert ImageProcessor(published, max_pixels=784 * 1280).max_pixels == 1003520
    assert ImageProcessor(published, min_pixels=784).min_pixels == 784
    default = ImageProcessor(tmp_path)  # no configuration file
    assert (default.min_pixels, default.max_pixels, default.factor) == (3136, 1003520, 28)
    Qwen2VLImageProcessorPil(max_pixels=784 * 9).save_pretrained(tmp_path / "saved")
    assert ImageProcessor(tmp_path / "saved").max_pixels == 784 * 9
    (tmp_path / "whole").mkdir()
    whole = {"image_processor": json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())}
    (tmp_path / "whole" / "processor_config.json").write_text(json.dumps(whole))
    assert ImageProcessor(tmp_path / "whole").max_pixels == 784 * 9


@pytest.mark.parametrize("limits", [(0, 784), (-1, 784), (785, 784), (12845057, None)])
def test_limits_that_exclude_every_size_are_refused(published, limits):
    with pytest.raises(InputError, match=f"pixel limits: min_pixels {limits[0]} must lie between 1 and max_pixels"):
        ImageProcessor(published, min_pixels=limits[0], max_pixels=limits[1])


@pytest.mark.parametrize("content", ["{", "[]", '{"do_resize": false}'])
def test_a_bad_configuration_is_refused(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=f"{tmp_path.name}: (the image processor's|do_resize is false)"):
        ImageProcessor(tmp_path)


def test_transparency_lies_on_white():
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    assert np.asarray(decode(saved(picture))).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    pixels = np.asarray([[[10, 20, 30], [200, 210, 220]]], np.uint8)
    upright = decode(saved(Image.fromarray(pixels), exif=exif))
    assert upright.size == (1, 2)
    assert np.asarray(upright)[:, 0].tolist() == [[10, 20, 30], [200, 210, 220]]


WHOLE = {kind: saved(Image.fromarray(noise(40, 30)), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "PPM")}


@pytest.mark.parametrize(
    "encoded", [b"", b"no image", b"P6 4 4 70000\n" + bytes(48), b"P6 xx", WHOLE["PNG"][:200], WHOLE["JPEG"][:300]]
)
def test_what_is_no_image_is_refused(encoded):
    for read in (decode, read_size):
        with pytest.raises(InputError, match="undecodable image: "):
            read(encoded)


@hypothesis.given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
@hypothesis.settings(deadline=None, max_examples=150)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_decode_or_are_refused(kind, data):
    content = bytearray(WHOLE[kind])
    for place in data.draw(st.lists(st.integers(0, 120), min_size=1, max_size=6)):
        content[place % len(content)] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(content))
    except InputError as error:
        assert str(error).startswith("undecodable image: ")
    else:
        assert image.mode == "RGB" and min(image.size) > 0


def test_out_of_memory_is_no_bad_image(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode(WHOLE["PNG"])
