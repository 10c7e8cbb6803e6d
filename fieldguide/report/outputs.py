"""All that the report stage writes."""

from pathlib import Path

from fieldguide.core.files import write_bytes
from fieldguide.core.manifest import write_table
from fieldguide.core.paths import CLASS_SIZES_CSV, MODEL_CARD, REPORT_HTML
from fieldguide.report.card import render_card
from fieldguide.report.data_figures import class_sizes, data_figures
from fieldguide.report.facts import Facts
from fieldguide.report.figures import figures_of
from fieldguide.report.page import render_page
from fieldguide.report.plots import save_png


def write_report(facts: Facts) -> list[Path]:
    """Writes every chart as PNG, the class sizes for `dvc plots`, the page and the model card; returns the charts' paths."""
    figures = data_figures() | figures_of(facts)
    for path, figure in figures.items():
        save_png(figure, path)
    write_table(class_sizes(facts.tables["classes"]), CLASS_SIZES_CSV)
    write_bytes(REPORT_HTML, render_page(facts, figures).encode())
    write_bytes(MODEL_CARD, render_card(facts).encode())
    return list(figures)
