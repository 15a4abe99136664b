import io
import os
import subprocess
import sys

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.tensorboard import TensorBoard


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


def steps(folder, tag: str) -> list[int]:
    return [event.step for event in read(folder).Scalars(tag)]


def png(size: tuple[int, int], colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.quick
def test_scalars_texts_and_captioned_pictures_come_back(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.scalars(7, {"reward/digit": 0.5, "updates": 8})
        board.text(7, "completion", "<think>2 * 3\nis *6*</think>")
        board.image(7, "picture", png((30, 20), "red"), "How many 3s?\ngold 2, reward 1.00")
        board.image(7, "bare", png((30, 20), "red"))
        events = read(tmp_path)  # nothing waits in a buffer
    assert events.Scalars("reward/digit")[0].value == 0.5
    assert events.Scalars("updates")[0].step == 7
    assert events.Tensors("completion")[0].tensor_proto.string_val == [b"    <think>2 * 3\n    is *6*</think>"]
    picture = Image.open(io.BytesIO(events.Images("picture")[0].encoded_image_string))
    assert picture.getpixel((29, 19)) == (255, 0, 0)
    caption = picture.convert("L").crop((0, 22, *picture.size))
    assert caption.getextrema()[0] < 60  # ink below the picture
    assert caption.getpixel((caption.width - 1, 0)) == 255
    assert (events.Images("bare")[0].width, events.Images("bare")[0].height) == (30, 20)


@pytest.mark.quick
def test_a_resumed_run_drops_what_came_after_the_restored_step(tmp_path):
    folder = RunFolder(tmp_path)
    folder.cut_after(-1)
    assert not list(folder.tensorboard.iterdir())  # a first start has nothing to drop
    with TensorBoard(folder.tensorboard) as board:
        for step in range(8):
            board.scalars(step, {"reward": step})
        board.scalars(6, {"evaluation/reward": 1.0})  # not logged again after the resume
    (file,) = folder.tensorboard.iterdir()
    with file.open("r+b") as torn:
        torn.truncate(file.stat().st_size - 5)
    assert steps(folder.tensorboard, "reward") == list(range(8))

    folder.cut_after(4)
    with TensorBoard(folder.tensorboard) as board:
        for step in range(5, 7):
            board.scalars(step, {"reward": 100 + step})
    assert [(event.step, event.value) for event in read(folder.tensorboard).Scalars("reward")] == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 105), (6, 106),
    ]  # fmt: skip
    assert "evaluation/reward" not in read(folder.tensorboard).scalars.Keys()

    folder.cut_after(-1)
    with TensorBoard(folder.tensorboard) as board:
        board.scalars(0, {"reward": 200})
    assert steps(folder.tensorboard, "reward") == [0]


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    code = "from vlaa_jax.training.tensorboard import TensorBoard; TensorBoard('log').scalars(0, {'a': 1.0})"
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(list((tmp_path / "log").iterdir())) == 1
