"""Report, model card and charts from the outputs of the other stages.

Reads the metrics and tables under metrics/, data/manifest.csv, data/raw, params.yaml, dvc.lock, and the hashes of checkpoint,
calibration and ONNX file; writes metrics/report.html (self-contained), metrics/model_card.md, every chart
under metrics/ as a PNG, and metrics/class_sizes.csv for `dvc plots`. Run it with `dvc repro report`.
"""

from fieldguide.core.errors import run_command
from fieldguide.core.files import write_bytes
from fieldguide.core.manifest import write_table
from fieldguide.core.params import read_params
from fieldguide.core.paths import CHECKPOINT, CLASS_SIZES_CSV, MODEL_CARD, REPORT_HTML
from fieldguide.report.card import render_card
from fieldguide.report.data_figures import class_sizes, data_figures
from fieldguide.report.facts import read_facts
from fieldguide.report.figures import figures_of
from fieldguide.report.page import render_page
from fieldguide.report.plots import save_png
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
    figures = data_figures() | figures_of(facts)
    for path, figure in figures.items():
        save_png(figure, path)
    write_table(class_sizes(facts.tables["classes"]), CLASS_SIZES_CSV)
    write_bytes(REPORT_HTML, render_page(facts, figures).encode())
    write_bytes(MODEL_CARD, render_card(facts).encode())
    with stage_run("report", None, CHECKPOINT) as run:
        run.log_metrics({"label_check": facts.label_check.as_dict()})  # which may have run after train
        run.log({}, REPORT_HTML, MODEL_CARD, *figures)
    print(f"-> {REPORT_HTML} ({REPORT_HTML.stat().st_size / 1e6:.1f} MB) {MODEL_CARD} and {len(figures)} charts")


if __name__ == "__main__":
    run_command(main)
