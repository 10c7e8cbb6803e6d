"""The exception for errors that a user can fix, and how commands report it and print names."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """One line that says what is wrong, the value, where, and what to do; a command prints it and exits with status 1."""


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Inside the block, a missing package raises a `UserError` that names the extra of fieldguide to install.

    A missing module of fieldguide or of the standard library is a defect and keeps its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from importlib.metadata import distributions  # slow: doubles the import time of --help

        package = (error.name or "fieldguide").partition(".")[0]
        if package == "fieldguide" or package in sys.stdlib_module_names:
            raise
        wanted = f"'fieldguide[{extra}]'" if extra else "fieldguide"
        is_installed = any(distributions(name="fieldguide"))  # otherwise it runs from a checkout
        command = f"pip install {wanted}" if is_installed else "make setup"
        raise UserError(f"{what} needs {package}; install it with: {command}") from error


def write_utf8() -> None:
    """Sets standard output to UTF-8, for CSV and JSON, whatever the terminal's encoding.

    A byte of a file name that is not UTF-8 is written as `\\udcXX`, XX being the byte: in JSON an escape that reads back as
    Python's name of the file.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # else a test or program has replaced it
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def run_command(main: Callable[[], None]) -> None:
    """Calls `main`; prints a `UserError` as one line on standard error and exits with status 1.

    Characters that the terminal's encoding lacks are printed escaped (`\\xe4`, `\\u5b54`, `\\udce4`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
