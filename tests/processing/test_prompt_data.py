"""What is read ahead: in the background, in the order asked for, and forgotten when it is not wanted any more."""

import gc
import threading
import time

import pytest

from vlaa_jax.processing.prompt_data import ReadAhead

pytestmark = pytest.mark.quick


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_is_expected_is_made_ready_in_the_background_and_once():
    read = []
    ahead = ReadAhead(lambda number: read.append(number) or number**2)
    assert ahead.take([3, 1]) == [9, 1]
    ahead.expect([4, 5])
    wait_until(lambda: len(read) == 4)
    assert sorted(read) == [1, 3, 4, 5]
    assert ahead.take([5]) == [25] and ahead.take([4]) == [16]  # one part after the other
    assert sorted(read) == [1, 3, 4, 5]
    assert ahead.take([5]) == [25] and read[-1] == 5  # given away once, it is read again


def test_what_is_not_expected_any_more_is_not_read():
    gate, read = threading.Event(), []
    ahead = ReadAhead(lambda number: gate.wait(20) and read.append(number))
    ahead.expect(range(10))
    wait_until(lambda: sum(future.running() for future in ahead._ready.values()) == 2)
    ahead.expect([20])
    gate.set()
    ahead.take([20])
    wait_until(lambda: len(read) >= 3)
    assert sorted(read) == [0, 1, 20]  # two had been begun


def test_an_error_is_raised_where_the_thing_is_taken():
    def read(number):
        if number == 2:
            raise ValueError("two")
        return number

    ahead = ReadAhead(read)
    ahead.expect([1, 2])
    assert ahead.take([1]) == [1]
    with pytest.raises(ValueError, match="two"):
        ahead.take([2])
    assert ahead.take([3]) == [3]


def test_the_threads_end_with_it():
    before = set(threading.enumerate())
    ahead = ReadAhead(abs)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del ahead
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in started))
