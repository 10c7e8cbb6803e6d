"""Stages forked from a process that has imported their libraries already: importing them is most of a tiny stage's time.

`python_folder()` is put first on the PATH of a command: the `python` in it forks stages, commands that use MLflow and code
that begins with `FORKED`, and is Python itself for all else. `ForkedStage` starts one stage, and the processes that it starts
with `sys.executable` (those that train together) are forked too. The code is always that of the project where it runs, in a
process of its own. It needs Linux; `AVAILABLE` is false elsewhere, and Python itself starts everything.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

AVAILABLE = sys.platform == "linux"
MESSAGES = (socket.AF_UNIX, socket.SOCK_SEQPACKET)  # the process number and the exit status stay two messages
LIBRARIES = (  # of others; the project's own code is imported by each stage
    *("numpy", "pandas", "pydantic", "yaml", "PIL.Image", "sklearn.metrics", "sklearn.manifold", "matplotlib.figure", "jinja2"),
    *("torch", "torch._dynamo", "torch.onnx", "torch.distributed.run", "onnxscript", "onnx", "onnxruntime", "timm", "cv2"),
    *("mlflow.artifacts", "mlflow.models", "mlflow.store.tracking.sqlalchemy_store"),
)
FORKED = "# forked\n"
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
option, what, *more = *sys.argv[1:], "", ""
is_stage = option == "-m" and what.startswith("stages.")
is_tracking = (option, what) == ("-m", "fieldguide") and more[0] in ("champion", "folds", "runs", "sync")
if not (is_stage or is_tracking or option == "-c" and what.startswith({forked!r})):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    request = dict(arguments=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ), python=sys.argv[0])
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    pid = int(server.recv(100))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = int(server.recv(100))
if code >= 0:
    sys.exit(code)
signal.signal(-code, signal.SIG_DFL)
os.kill(os.getpid(), -code)
"""


class ForkedStage:
    """A running stage, with the part of `subprocess.Popen`'s interface that the tests use."""

    def __init__(self, stage: str, folder: Path, log: Path, environment: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.server = socket.socket(*MESSAGES)
        self.server.connect(_address())
        request = {"arguments": ["-m", stage], "folder": str(folder), "environment": environment}
        request |= {"python": str(python_folder() / "python"), "own_session": True}
        with log.open("a") as stream, open(os.devnull) as nothing:
            files = [nothing.fileno(), stream.fileno(), stream.fileno()]
            socket.send_fds(self.server, [json.dumps(request).encode()], files)
        self.pid = int(self.server.recv(100))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self.server.recv(100))
            self.server.close()
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def python_folder() -> Path:
    """A folder with a command `python` that forks stages, or the one of Python itself."""
    if not AVAILABLE:
        return Path(sys.executable).parent
    shim = Path(_address()).with_name(str(os.getpid())) / "python"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable, address=_address(), forked=FORKED))
    shim.chmod(0o755)
    return shim.parent


@cache
def _address() -> str:
    """Where the one server of all test processes listens; the first that asks starts it, and it ends with the tests."""
    tests = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"forked-{tests}"
    folder.mkdir(exist_ok=True)
    address = folder / "socket"
    with FileLock(folder / "lock"):
        if not _answers(address):
            address.unlink(missing_ok=True)  # of an earlier process of this number
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, str(address), str(tests)]
            server = os.posix_spawn(command[0], command, environment)  # a Popen would warn that nobody waits for it
            while not address.exists():
                assert os.waitpid(server, os.WNOHANG) == (0, 0), "the process that forks stages has ended"
                time.sleep(0.05)
    return str(address)


def _answers(address: Path) -> bool:
    with socket.socket(*MESSAGES) as server:
        return server.connect_ex(str(address)) == 0


def _serve(address: Path, tests: int) -> None:
    """Forks a stage for each connection until the process `tests` is gone, then removes the folder of `address`."""
    for name in LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a process that watches a stage
    with socket.socket(*MESSAGES) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        address.with_name("socket.new").rename(address)
        server.settimeout(1)
        while Path(f"/proc/{tests}").exists():
            with suppress(TimeoutError):
                client, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    client.settimeout(None)
                    return _watch(client)
                client.close()
    shutil.rmtree(address.parent)


def _watch(client: socket.socket) -> None:
    """Runs the stage in a child, tells the client its process number and how it ended; kills it if the client goes."""
    request, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
    if not request:  # `_answers` asks for nothing
        os._exit(0)
    if pid := os.fork():
        client.sendall(b"%d" % pid)
        ended = os.pidfd_open(pid)
        if client in select.select([client, ended], [], [])[0]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            client.sendall(b"%d" % code)
        os._exit(0)
    client.close()
    for target, source in enumerate(files):
        os.dup2(source, target)
        os.close(source)
    for number, name in ((1, "stdout"), (2, "stderr")):  # those of the parent believe that they are what its own were
        setattr(sys, name, open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
    _run(**json.loads(request))


def _run(arguments: list[str], folder: str, environment: dict[str, str], python: str, own_session: bool = False) -> None:
    """What `python -m module …` or `python -c code …` does in that folder with that environment."""
    if own_session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    paths = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*paths, *sys.path]
    sys.executable = python
    (option, what, *_), code = arguments, 0
    sys.argv = arguments[1:]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0)  # destructors of C++ libraries would join threads of the parent


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
