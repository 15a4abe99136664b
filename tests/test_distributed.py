"""What the processes of a run pass around; `training/test_processes.py` runs them."""

import pickle
import subprocess
import sys

import pytest
from processes import ROOT, run

from vlaa_jax import distributed
from vlaa_jax.errors import InputError


def exchange_of(monkeypatch, values: list, sizes: list[int]):
    """Lets this process be the first of as many as there are values; `sizes` gets the bytes of every exchange."""
    data = [pickle.dumps(value) for value in values]

    def exchange(own: bytes, size: int) -> list[bytes]:
        sizes.append(size)
        first, room = len(sizes) == 1, size - 8
        parts = [len(d).to_bytes(8, "little") + d[:room] if first else d[sizes[0] - 8 :] for d in data]
        assert parts[0] == own
        return [part.ljust(size, b"\0") for part in parts]

    monkeypatch.setattr(distributed.jax, "process_count", lambda: len(values))
    monkeypatch.setattr(distributed, "_exchange", exchange)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([{"a": 1}, None], [4096]),
        (["x" * 4000, "y"], [4096]),
        (["x" * 5000, "y"], [4096, 1024]),
        (["x", "y" * 100_000, ""], [4096, 131_072]),
    ],
)
def test_values_arrive_whole_and_few_sizes_are_exchanged(monkeypatch, values, expected):
    sizes: list[int] = []
    exchange_of(monkeypatch, values, sizes)
    assert distributed.gather(values[0]) == values
    assert sizes == expected


@pytest.mark.quick
def test_rows_come_in_the_order_of_the_batch_and_the_first_process_that_has_one_counts(monkeypatch):
    # Two processes that share rows 2 and 3, as with an axis of tensors over both.
    parts = [{2: "c", 3: "d", 0: "a"}, {3: "other", 1: "b", 2: "other"}]
    monkeypatch.setattr(distributed, "gather", lambda value: parts)
    assert distributed.gather_rows(parts[0]) == ["a", "b", "c", "d"]


@pytest.mark.quick
def test_all_processes_raise_the_error_of_the_first_that_failed(monkeypatch):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, InputError("one"), InputError("two")])
    with pytest.raises(InputError, match="one") as raised:
        distributed.together(lambda: 1)
    assert distributed._is_shared(raised.value)
    # So is what a caller makes of it.
    with pytest.raises(RuntimeError) as raised:
        try:
            distributed.together(lambda: 1)
        except InputError:
            raise RuntimeError("of it") from None
    assert distributed._is_shared(raised.value) and not distributed._is_shared(InputError("another"))


def test_every_process_has_its_rows_on_meshes_of_all_kinds(tmp_path):
    processes = run(2, tmp_path / "rows", [], devices=2, script="rows_of_processes", seconds=120)
    assert [process.popen.returncode for process in processes] == [0, 0], [process.said() for process in processes]


@pytest.mark.quick
def test_a_process_that_waits_in_vain_ends_with_a_sentence():
    code = (
        "from vlaa_jax import distributed\ndistributed._START_SECONDS = 2\n"
        "with distributed.joined(['--coordinator=127.0.0.1:9', '--processes=2', '--process=1']): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "error: the processes of this run did not meet at 127.0.0.1:9 in 2 s: expected that" in done.stderr
