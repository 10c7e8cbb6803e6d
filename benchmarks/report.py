"""The report, its charts and `dvc plots show` as the number of classes grows.

    python benchmarks/report.py [--classes 1000 5000 10000] [--without-genus] [--keep FOLDER] [--open] [--vega FOLDER]

Writes what the stages before `report` write about that many classes of falling size, six images a class on average, four in
five answered correctly (tests/support/reports.py), into a temporary folder. A process draws every chart, the page and the
card as the stage does, and another runs `dvc plots show`. Peaks are of the process that draws (resident set). --open opens
that page in a Chromium that is running and prints the seconds until all its charts and pictures are drawn, median of five. The
page fetches Vega; without a connection name a folder with vega.min.js, vega-lite.min.js and vega-embed.min.js (`--vega`).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
WRITE = """
import sys
from support.reports import species_names, write_large_run
write_large_run(species_names(int(sys.argv[1]), sys.argv[2] == "True"))
"""
DRAW = """
from fieldguide.report.facts import read_facts
from fieldguide.report.outputs import write_report
from support.reports import PARAMS
write_report(read_facts(PARAMS))
"""


def measure(*command: str, folder: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of a command in `folder`; ends the program if it fails."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "DVC_ROOT": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)[:60]} failed in {folder}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def make_project(folder: Path, n_classes: int, with_genus: bool) -> None:
    """A git and DVC repository with the outputs of the stages before `report`."""
    for name in ("dvc.yaml", ".dvc/config", ".dvc/plots"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (folder / "params.yaml").symlink_to(ROOT / "params.yaml")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    measure(sys.executable, "-c", WRITE, str(n_classes), str(with_genus), folder=folder)


def seconds_to_open(index: Path, vega: Path | None) -> float:
    """From the address to the last chart of a page of `dvc plots show`, in a browser that is running: median of five."""
    sys.path.insert(0, str(ROOT / "tests"))
    from playwright.sync_api import Route

    from support.browser import chromium

    def from_folder(route: Route) -> None:
        name = Path(urlsplit(route.request.url).path).name  # vega-lite@5.2.0
        route.fulfill(path=(vega or Path()) / f"{name.split('@')[0]}.min.js")

    n_charts = index.read_text(encoding="utf-8").count("var spec = ")
    charts = f"document.querySelectorAll('.vega-embed canvas').length >= {n_charts}"
    seconds = []
    with chromium() as browser:
        for _ in range(5):
            page = browser.new_context().new_page()
            if vega:
                page.route("https://cdn.jsdelivr.net/npm/*", from_folder)
            start = time.perf_counter()
            page.goto(index.as_uri())
            page.wait_for_function(f"{charts} && [...document.images].every(image => image.complete)")
            page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            seconds.append(time.perf_counter() - start)
            page.close()
    return statistics.median(seconds)


def measure_report(n_classes: int, with_genus: bool, arguments: argparse.Namespace) -> None:
    """Prints a line; the artifacts, charts and page stay in `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        make_project(folder, n_classes, with_genus)
        drawn = measure(sys.executable, "-c", DRAW, folder=folder)
        metrics = folder / "metrics"
        page, card = ((metrics / name).stat().st_size / 1e6 for name in ("report.html", "model_card.md"))
        largest = max(metrics.glob("*.png"), key=lambda path: path.stat().st_size)
        plots = measure(str(Path(sys.executable).parent / "dvc"), "plots", "show", folder=folder)
        index = folder / "dvc_plots" / "index.html"
        shown = index.stat().st_size / 1e6
        opened = f" {seconds_to_open(index, arguments.vega):8.2f}" if arguments.open else ""
        print(
            f"{n_classes:8d} {drawn[0]:8.1f} {drawn[1]:8.1f} {drawn[2]:6.0f} {page:8.2f} {card:8.3f}"
            f" {largest.stat().st_size / 1e6:8.2f} {plots[0]:8.1f} {plots[1]:8.1f} {shown:8.2f}{opened}",
            flush=True,
        )
        if arguments.keep:
            shutil.copytree(folder, arguments.keep.resolve() / str(n_classes), dirs_exist_ok=True)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 5000, 10_000])
    parser.add_argument("--without-genus", action="store_true", help="class names share no first word")
    parser.add_argument("--keep", type=Path, help="a folder for what was drawn")
    parser.add_argument("--open", action="store_true", help="open the page of `dvc plots show` in Chromium")
    parser.add_argument("--vega", type=Path, help="a folder with Vega's three files, instead of the network")
    arguments = parser.parse_args()
    print(
        f"{'classes':>8s} {'report s':>8s} {'CPU s':>8s} {'MiB':>6s} {'page MB':>8s} {'card MB':>8s} {'png MB':>8s}"
        f" {'plots s':>8s} {'CPU s':>8s} {'html MB':>8s}{' opened s' * arguments.open}"
    )
    for n_classes in arguments.classes:
        measure_report(n_classes, not arguments.without_genus, arguments)


if __name__ == "__main__":
    main()
