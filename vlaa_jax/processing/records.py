"""What shards hold: examples (a question with images, gold answer and verifier) and judged partial solutions.

A record is stored as one `tf.train.Example`, as TensorFlow Datasets (TFDS) 4.9 writes it; TensorFlow is not needed.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from vlaa_jax.errors import InputError

VERIFIERS = ("digit", "mcq", "math", "iou", "open_ended")
BOX_SPACES = ("", "normalised", "pixels", "thousand")


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
      id: unique name inside its split.
      images: encoded image files (PNG, JPEG, ...), in the order in which the question shows them.
      question: text; `<image>` marks where each image stands, none means all images first.
      answer: the gold answer, read by `verifier`.
      verifier: one of `VERIFIERS`.
      choices: texts of the options of a multiple-choice question, in letter order.
      box_space: coordinate space of gold and predicted boxes, one of `BOX_SPACES`. `pixels`: the gold is in pixels of
        the stored image, the prediction in pixels of the resized image that the policy sees (what Qwen2.5-VL emits).
      trace: a reference completion's reasoning (text between the think tags), may be empty.
      source: name of the data set it came from.
      metadata: anything else, JSON-serialisable.
    """

    id: str
    images: tuple[bytes, ...]
    question: str
    answer: str
    verifier: str
    choices: tuple[str, ...] = ()
    box_space: str = ""
    trace: str = ""
    source: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ProcessRecord:
    """A judged partial solution, as ViLReward-73K has them (ViLBench, section 6.1 of our notes on the paper).

    Attributes:
      id: unique name inside its split; those of one question share what stands before the last `/`.
      images: encoded image files.
      question: text.
      process: the solution up to and with the step that is judged.
      value: of that step, 0 to 1; stored in float32.
    """

    id: str
    images: tuple[bytes, ...]
    question: str
    process: str
    value: float


Kind = TypeVar("Kind", Record, ProcessRecord)


def check_record(record: Record | ProcessRecord) -> None:
    """Raises `InputError` if a field of `record` lies outside its values."""
    if isinstance(record, ProcessRecord):
        if not 0 <= record.value <= 1:
            raise InputError(f"record {record.id}: value {record.value} does not lie between 0 and 1")
        return
    if record.verifier not in VERIFIERS:
        raise InputError(f"record {record.id}: verifier {record.verifier!r} is none of {', '.join(VERIFIERS)}")
    if record.box_space not in BOX_SPACES:
        raise InputError(
            f"record {record.id}: box_space {record.box_space!r} is none of {', '.join(map(repr, BOX_SPACES))}"
        )
    if record.verifier == "iou" and not record.box_space:
        raise InputError(f"record {record.id}: verifier iou needs a box_space, one of {', '.join(BOX_SPACES[1:])}")


def load_tfds() -> None:
    """Imports all of TFDS that writing records needs, for a program that is about to start threads.

    TFDS imports parts of itself when they are first used, and meanwhile replaces `__import__` in the whole process:
    what another thread imports then is not what it asked for.
    """
    Schema(Record).serializer()


class Schema(Generic[Kind]):
    """How the records of one kind are stored. Pickles."""

    def __init__(self, kind: type[Kind]):
        """Looks all up at once: parts of TFDS are imported when used, and threads that do so wait for each other.

        Args:
          kind: `Record` or `ProcessRecord`.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        self.kind = kind
        self._example = tf_example_pb2.Example
        self._fields = {field.name: field.type for field in dataclasses.fields(kind)}

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Schema, (self.kind,)

    def features(self) -> Any:
        """For TFDS. `Sequence(Image)` cannot skip decoding, hence plain bytes for the images."""
        from tensorflow_datasets import features

        images = features.Sequence(features.Tensor(shape=(), dtype=np.object_))
        stored = {
            str: features.Text(),
            dict[str, Any]: features.Text(),  # JSON
            float: features.Scalar(np.float32),
            tuple[str, ...]: features.Sequence(features.Text()),
            tuple[bytes, ...]: images,
        }
        return features.FeaturesDict({name: stored[kind] for name, kind in self._fields.items()})

    def serializer(self) -> Callable[[Kind], bytes]:
        """The bytes of a record; the same for the same record."""
        from tensorflow_datasets.core import example_serializer

        features = self.features()
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

        def serialize(record: Kind) -> bytes:
            fields = {
                name: json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
                for name, value in vars(record).items()
            }
            example = serializer.get_tf_example(features.encode_example(fields))
            return example.SerializeToString(deterministic=True)

        return serialize

    def parse(self, serialized: bytes) -> Kind:
        """Reads the protocol buffer itself: six times as fast as TFDS's parser by way of numpy.

        Raises:
          InputError: a record of another kind.
        """
        stored = self._example.FromString(serialized).features.feature
        if stored.keys() != self._fields.keys():
            raise InputError(
                f"a record with the fields {', '.join(sorted(stored))}, where a {self.kind.__name__} has "
                f"{', '.join(sorted(self._fields))}"
            )
        return self.kind(**{name: _value(kind, stored[name]) for name, kind in self._fields.items()})


def _value(kind: Any, stored: Any) -> Any:
    if kind is float:
        return stored.float_list.value[0]
    values = stored.bytes_list.value
    if kind is str:
        return values[0].decode()
    if kind == tuple[bytes, ...]:
        return tuple(values)
    return tuple(value.decode() for value in values) if kind == tuple[str, ...] else json.loads(values[0])
