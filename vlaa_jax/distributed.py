"""The processes of a run, one a host: they find each other, agree, and pass small host values around.

All processes run the same program, each on its own devices. What only one of them may do or can fail at (writing the
run folder, reading a record, judging an answer) goes through `on_first` or `together`: then all go on, or all end with
the same error.
"""

import contextlib
import os
import pickle
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlaa_jax.errors import InputError

T = TypeVar("T")

_FLAGS = ("coordinator", "processes", "process")
_START_SECONDS = 300  # in which all processes must have come
_SILENT_SECONDS = 60  # a process that is not heard of for so long is dead, and ends the others
_SHARED = "on_all_processes"  # attribute of an error that all processes have raised
_FRAME = 1 << 12  # bytes of the first message of an exchange; what is longer takes a second one


@contextlib.contextmanager
def joined(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Joins the other processes of the run; the block must hold all work on devices.

    They are found by the environment (Cloud TPU, GKE, Slurm, MPI) or by the flags `--coordinator=HOST:PORT
    --processes=N --process=I`. Only the first process prints then. An error that the others do not share ends this one
    at once, so that they notice.

    Args:
      arguments: the command line.

    Yields:
      It without these flags.

    Raises:
      InputError: a flag is wrong or missing. Processes that do not meet end with a sentence and exit code 2 too.
    """
    address, rest = _take_flags(arguments)
    _start(address)
    try:
        yield rest
    except BaseException as error:
        if jax.distributed.is_initialized() and jax.process_count() > 1 and not _is_shared(error):
            _end_alone(error)
        raise


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """A value of every process, in their order, on every process.

    Args:
      value: anything that can be pickled; of 4 kB or less it takes one exchange, else two.
    """
    if jax.process_count() == 1:
        return [value]
    data = pickle.dumps(value)
    sizes_and_starts = _exchange(len(data).to_bytes(8, "little") + data[: _FRAME - 8], _FRAME)
    sizes = [int.from_bytes(frame[:8], "little") for frame in sizes_and_starts]
    whole = [frame[8:] for frame in sizes_and_starts]
    longest = max(sizes) - (_FRAME - 8)
    if longest > 0:
        rest = _exchange(data[_FRAME - 8 :], 1 << (longest - 1).bit_length())  # few lengths: each is a program
        whole = [start + end for start, end in zip(whole, rest, strict=True)]
    return [pickle.loads(data[:size]) for data, size in zip(whole, sizes, strict=True)]


def gather_rows(rows: Mapping[int, T]) -> list[T]:
    """All rows of a batch, in its order, on every process.

    Args:
      rows: those of this process by their place in the batch. Of a row that several processes have, that of the first
        of them counts.
    """
    everywhere: dict[int, T] = {}
    for part in gather(dict(rows)):
        everywhere = part | everywhere
    return [everywhere[place] for place in sorted(everywhere)]


def together(work: Callable[[], T]) -> T:
    """What `work` gives here.

    Raises:
      Exception: that of the first process where it raised one; the same on all.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    return _settle(result, error)


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives on the first process, which alone runs it.

    Raises:
      Exception: what it raised there; the same on all.
    """
    return gather(together(lambda: work() if is_first() else None))[0]


def _settle(result: T, error: Exception | None) -> T:
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return result
    if error is not None and not is_first():
        error.add_note(f"in process {jax.process_index()}:\n{traceback.format_exc()}")
    failed = [error for error in gather(_portable(error)) if error is not None]
    if failed:
        setattr(failed[0], _SHARED, True)
        raise failed[0] from None
    return result


def _is_shared(error: BaseException | None) -> bool:
    """Whether all processes end with this error, or with one that was made of the same."""
    return error is not None and (hasattr(error, _SHARED) or _is_shared(error.__context__))


def _portable(error: Exception | None) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(repr(error))
    return error


def _exchange(data: bytes, size: int) -> list[bytes]:
    """The bytes of every process, each filled up to `size`."""
    padded = np.zeros(size, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return [row.tobytes() for row in multihost_utils.process_allgather(padded)]


def _take_flags(arguments: Sequence[str]) -> tuple[tuple[str, int, int] | None, list[str]]:
    """(coordinator, processes, process) where they are given, and the other arguments."""
    given, rest = {}, []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in _FLAGS:
            given[name] = value
        else:
            rest.append(argument)
    if not given:
        return None, rest
    for name in _FLAGS:
        if name not in given:
            raise InputError(f"--{name} is missing: --coordinator, --processes and --process go together")
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator is {given['coordinator']!r}: expected HOST:PORT of process 0")
    for name in _FLAGS[1:]:
        if not given[name].isdecimal():
            raise InputError(f"--{name} is {given[name]!r}: expected a number")
    processes, process = int(given["processes"]), int(given["process"])
    if process >= processes:
        raise InputError(f"--process is {process}: expected one of 0 to {processes - 1} (--processes={processes})")
    return (given["coordinator"], processes, process), rest


def _start(address: tuple[str, int, int] | None) -> None:
    """Meets the others: (coordinator, processes, process), or as the environment says."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    devices = _virtual_devices() * (1 if address is None else address[1])
    if devices > 1:
        # The bits of a product on the CPU tell over how many threads it was split: as many in any number of processes.
        os.environ.setdefault("NPROC", str(max(devices, os.cpu_count() or 1)))
    alarm = threading.Timer(_START_SECONDS, _end_unmet, [address])
    alarm.start()
    try:
        if address is not None and address[1] > 1:
            _initialize(*address)
        elif address is not None or not _joins_cluster():
            # A sum over chips has the bits of the library that adds it up: virtual devices use that of processes.
            if _virtual_devices() > 1:
                here = f"127.0.0.1:{_free_port()}"
                _initialize(here, 1, 0, coordinator_bind_address=here)
    finally:
        alarm.cancel()
    if jax.distributed.is_initialized() and not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w")


def _joins_cluster() -> bool:
    try:
        _initialize()
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
        return False
    return True


def _initialize(*address: str | int, **more: str) -> None:
    jax.distributed.initialize(
        *address,
        cluster_detection_method="deactivate" if address else None,
        initialization_timeout=2 * _START_SECONDS,  # ours comes first: JAX would end with a stack trace
        heartbeat_timeout_seconds=_SILENT_SECONDS,
        **more,
    )


def _virtual_devices() -> int:
    """CPU devices that this process was told to have."""
    forced = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(int(forced[-1]) if forced else 1, jax.config.jax_num_cpu_devices)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_unmet(address: tuple[str, int, int] | None) -> None:
    where = f" at {address[0]}" if address else ""
    print(
        f"error: the processes of this run did not meet{where} in {_START_SECONDS} s: expected that all of them are "
        "started within that time and can reach process 0",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _end_alone(error: BaseException) -> None:
    """Leaves without waiting for the others, which may be waiting for this process: its connections break."""
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.__stderr__)
    elif not isinstance(error, SystemExit):
        print(f"process {jax.process_index()} ends alone:", file=sys.__stderr__)
        traceback.print_exception(error, file=sys.__stderr__)
    sys.__stdout__.flush()
    sys.__stderr__.flush()
    os._exit(2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1)
