"""Report, model card and charts from the outputs of the other stages.

Reads the metrics and tables under metrics/, data/manifest.csv, data/taxonomy.csv, data/raw, params.yaml, dvc.lock, and the
hashes of checkpoint, calibration and ONNX file; writes metrics/report.html (self-contained), metrics/model_card.md, every chart
under metrics/ as a PNG, and metrics/class_sizes.csv for `dvc plots`. Run it with `dvc repro report`.
"""

from fieldguide.core.errors import run_command
from fieldguide.core.params import read_params
from fieldguide.core.paths import CHECKPOINT, MODEL_CARD, REPORT_HTML
from fieldguide.report.facts import read_facts
from fieldguide.report.outputs import write_report
from fieldguide.tracking.run import stage_run


def main() -> None:
    params = read_params()
    sections = {
        "data": params.data,
        "split_check": params.split_check,
        "label_check": params.label_check,
        "model": params.model,
        "train": params.train,
        "augment": params.augment,
        "evaluate": params.evaluate,
        "export": params.export,
        "benchmark": params.benchmark,
    }
    facts = read_facts({name: section.model_dump(mode="json") for name, section in sections.items()})
    charts = write_report(facts)
    with stage_run("report", None, CHECKPOINT) as run:
        run.log_metrics({"label_check": facts.label_check.as_dict()})  # which may have run after train
        run.log({}, REPORT_HTML, MODEL_CARD, *charts)
    print(f"-> {REPORT_HTML} ({REPORT_HTML.stat().st_size / 1e6:.1f} MB) {MODEL_CARD} and {len(charts)} charts")


if __name__ == "__main__":
    run_command(main)
