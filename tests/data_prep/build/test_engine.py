"""The default runner."""

import time
from collections.abc import Iterable

import apache_beam as beam

from data_prep.build.engine import pipeline


class Slow(str):
    """A text that takes longer to encode than Beam's threads wait before they send what they have."""


class SlowCoder(beam.coders.Coder):
    def encode(self, value: str) -> bytes:
        time.sleep(1.5 if value.startswith("slow") else 0)
        return value.encode()

    def decode(self, encoded: bytes) -> str:
        return encoded.decode()

    def is_deterministic(self) -> bool:
        return True


def test_no_half_element_is_sent(tmp_path):
    beam.coders.registry.register_coder(Slow, SlowCoder)
    words = ["one", "slow two", "three", "slow four"]

    def pair(word: str) -> tuple[str, Slow]:
        return "key", Slow(word)

    def write(group: tuple[str, Iterable[Slow]]) -> None:
        (tmp_path / group[0]).write_text("\n".join(sorted(group[1])))

    with pipeline([]) as made:
        _ = made | beam.Create(words) | beam.Map(pair) | beam.GroupByKey() | beam.Map(write)
    assert (tmp_path / "key").read_text().splitlines() == sorted(words)
