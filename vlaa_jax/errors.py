"""Wrong input: one sentence for the user, exit code 2 for the shell."""

import pathlib
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong. The message names the file, record or field and what was expected."""


def check_output(flag: str, path: pathlib.Path | None) -> None:
    """Raises `InputError` where a file that a command writes at its end, if any, could not be written."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"{flag}: {path} is a folder" if path.is_dir() else f"{flag}: no folder {path.parent}")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0 or its result, 2 after one sentence on an `InputError`, 130 on Ctrl-C."""
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
