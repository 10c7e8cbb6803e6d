"""The one exception for mistakes that a user can mend, and what a command does with it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """One line that says what is wrong, the value, where, and what to do; a command prints it and exits with status 1."""


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Inside the block, a package that is not installed becomes a `UserError` that says which extra of fieldguide brings it.

    Modules of fieldguide itself and of Python are not packages: that they are missing is a defect, and stays a traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from importlib.metadata import distributions  # only now: it takes as long as all that --help imports

        package = (error.name or "fieldguide").partition(".")[0]
        if package == "fieldguide" or package in sys.stdlib_module_names:
            raise
        wanted = f"'fieldguide[{extra}]'" if extra else "fieldguide"
        is_installed = any(distributions(name="fieldguide"))  # else it runs from a checkout
        command = f"pip install {wanted}" if is_installed else "make setup"
        raise UserError(f"{what} needs {package}; install it with: {command}") from error


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
