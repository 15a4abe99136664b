"""Wrong input: one sentence for the user, exit code 2 for the shell."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong. The message names the file, record or field and what was expected."""


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
