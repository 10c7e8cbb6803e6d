"""One page and a model card about the run, from what the other stages wrote.

Reads the metrics, tables and pictures under metrics/, the receipt of data/raw, params.yaml, dvc.lock, and the hashes of
manifest, checkpoint, calibration and ONNX file; writes metrics/report.html, which opens with a double click, and
metrics/model_card.md. Run it with `dvc repro report`.
"""

from fieldguide.core.errors import run_command
from fieldguide.core.files import write_bytes
from fieldguide.core.params import read_params
from fieldguide.core.paths import CHECKPOINT, MODEL_CARD, REPORT_HTML
from fieldguide.report.page import read_facts, render_card, render_page
from fieldguide.tracking import run as tracking


def main() -> None:
    params = read_params()
    sections = {
        "data": params.data,
        "split_check": params.split_check,
        "model": params.model,
        "train": params.train,
        "augment": params.augment,
        "evaluate": params.evaluate,
        "export": params.export,
        "benchmark": params.benchmark,
    }
    facts = read_facts({name: section.model_dump(mode="json") for name, section in sections.items()})
    write_bytes(REPORT_HTML, render_page(facts).encode())
    write_bytes(MODEL_CARD, render_card(facts).encode())
    if CHECKPOINT.exists():
        with tracking.stage_run("report", None, CHECKPOINT) as run:
            run.log({}, REPORT_HTML, MODEL_CARD)
    print(f"-> {REPORT_HTML} ({REPORT_HTML.stat().st_size / 1e6:.1f} MB) {MODEL_CARD}")


if __name__ == "__main__":
    run_command(main)
