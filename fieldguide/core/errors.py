"""The one exception for mistakes that a user can mend, and what a command does with it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """One line that says what is wrong, the value, where, and what to do; a command prints it and exits with status 1."""


def run_command(main: Callable[[], None]) -> None:
    """Calls `main`; a `UserError` becomes one line on standard error and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
