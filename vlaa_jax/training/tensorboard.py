"""TensorBoard files without TensorFlow: scalars, texts, pictures with captions.

The events go through TensorBoard's own `RecordWriter` and messages. Its `EventFileWriter` imports TensorFlow wherever
that is installed (seconds, and GPU memory) and names files by clock and host: but the purge of a resumed run is right
only if its file is read after the older ones, so files are numbered here.
"""

import io
import os
import pathlib
import textwrap
import time
from collections.abc import Mapping
from typing import Self

from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

_TEXT_COLUMNS = 110
_CAPTION_WIDTH = 420  # pixels
_CAPTION_SIZE = 14


class TensorBoard:
    """An event file of one run; a new one at every start. Each call is on its way to the disk when it returns."""

    def __init__(self, directory: str | os.PathLike[str], *, restored_step: int | None = None):
        """Opens the next file of `directory`, which is made if missing.

        Args:
          restored_step: drop what older files hold of later steps (-1 drops all); None drops nothing.
        """
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        number = 1 + max(
            (int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*.run")), default=0
        )
        self._file = (directory / f"events.out.tfevents.{number:06d}.run").open("xb")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if restored_step is not None:
            self._write(Event(step=restored_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """One curve a name; TensorBoard keeps float32."""
        summary = [Summary.Value(tag=name, simple_value=float(value)) for name, value in sorted(values.items())]
        self._write(Event(step=step, summary=Summary(value=summary)))

    def text(self, step: int, name: str, text: str) -> None:
        """A plain text, shown as it stands, tags and all."""
        lines = [part for line in text.splitlines() for part in _wrap(line, _TEXT_COLUMNS)]
        markdown = "\n".join("    " + line for line in lines)  # four spaces: Markdown takes nothing in it as markup
        tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[markdown.encode()])
        metadata: SummaryMetadata = create_summary_metadata(display_name=name, description="")
        self._write(
            Event(step=step, summary=Summary(value=[Summary.Value(tag=name, tensor=tensor, metadata=metadata)]))
        )

    def image(self, step: int, name: str, encoded: bytes, caption: str = "") -> None:
        """A picture; the caption is drawn below it, since TensorBoard knows captions of curves only, not of steps.

        Args:
          encoded: an image file (PNG, JPEG, ...).

        Raises:
          InputError: the bytes are no image.
        """
        from vlaa_jax.processing.images import decode  # seconds: it loads the image processor

        picture = _with_caption(decode(encoded), caption)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=buffer.getvalue()
        )
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _wrap(line: str, columns: int) -> list[str]:
    return textwrap.wrap(line, columns, drop_whitespace=False, replace_whitespace=False) or [""]


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    """The picture on white, with lines of text below it."""
    if not caption:
        return picture
    font = ImageFont.load_default(_CAPTION_SIZE)
    width = max(picture.width, _CAPTION_WIDTH)
    columns = int(width / font.getlength("n"))
    lines = [part for line in caption.splitlines() for part in _wrap(line, columns)]
    height = _CAPTION_SIZE + 4
    canvas = Image.new("RGB", (width, picture.height + height * len(lines) + 8), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((4, picture.height + 4 + row * height), line, fill="black", font=font)
    return canvas
