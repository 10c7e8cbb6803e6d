"""Labels that the images contradict, images of none of the classes, and copies that no hash found.

Every labelled image in use is judged by images that do not share its fold, by their embeddings. Reads data/manifest.csv,
data/embeddings.safetensors, data/raw and `label_check` of params.yaml; writes metrics/label_check.json, label_errors.csv (a
line per finding), label_errors.html (the findings beside examples) and label_map.csv. Changes no label: a person decides,
with `fieldguide review`. Run it with `dvc repro label_check`.
"""

from fieldguide.core.artifacts import LabelCheckMetrics
from fieldguide.core.errors import run_command
from fieldguide.core.files import write_bytes
from fieldguide.core.headlines import write_metrics
from fieldguide.core.manifest import read_manifest, write_table
from fieldguide.core.params import read_params
from fieldguide.core.paths import (
    EMBEDDINGS,
    LABEL_ERRORS_CSV,
    LABEL_ERRORS_HTML,
    LABEL_MAP_CSV,
    MANIFEST,
    RAW,
    stage_metrics,
)
from fieldguide.labels.findings import label_check_metrics, label_errors, missed_copies
from fieldguide.labels.gallery import label_errors_page
from fieldguide.labels.judging import judge
from fieldguide.labels.map import label_map
from fieldguide.network.embeddings import load_embeddings

MAX_PRINTED = 10  # pairs of classes


def main() -> None:
    params = read_params()
    manifest = read_manifest(MANIFEST)
    rows = manifest[manifest["use"] & manifest["label"].notna()].reset_index(drop=True)
    rows = rows if params.label_check.enabled else rows[:0]
    embeddings = load_embeddings(EMBEDDINGS)
    vectors = embeddings.vectors[embeddings.rows_of(rows)]
    judgement = judge(vectors, rows)
    table = label_errors(rows, judgement, missed_copies(rows, judgement.close, RAW, params.runtime.n_workers))
    metrics = label_check_metrics(rows, judgement, table, params.label_check.enabled)
    write_table(table, LABEL_ERRORS_CSV)
    write_table(label_map(vectors, rows, table), LABEL_MAP_CSV)
    write_metrics("label_check", metrics)
    write_bytes(LABEL_ERRORS_HTML, label_errors_page(rows, judgement, table, RAW).encode())
    print_headline(metrics)


def print_headline(metrics: LabelCheckMetrics) -> None:
    if not metrics.enabled:
        print(f"label_check.enabled is false: no label was looked at -> {stage_metrics('label_check')}")
        return
    low, high = (100 * value for value in (metrics.accuracy_low, metrics.accuracy_high))
    print(
        f"{metrics.images} labels judged, {metrics.accuracy:.2%} of them as given ({low:.1f} to {high:.1f});"
        f" {metrics.not_judged} in classes without other images"
    )
    by_split = ", ".join(f"{n} {split}" for split, n in metrics.suspected.items())
    print(f"suspected wrong labels: {by_split}; {metrics.doubtful} doubtful; {metrics.atypical} atypical images")
    print(f"copies that no hash found: {metrics.missed_copies}, of them across splits: {metrics.missed_leaks}")
    print(f"findings that a person has decided on: {metrics.decided}")
    for pair in metrics.inseparable[:MAX_PRINTED]:
        print(f"hardly told apart: {pair.one} and {pair.other} ({pair.confused} of {pair.images} images)")
    if metrics.inseparable_pairs > MAX_PRINTED:
        print(f"{metrics.inseparable_pairs} pairs of classes are hardly told apart, the worst {MAX_PRINTED} of them above")
    print(f"look at {LABEL_ERRORS_HTML}, decide with: fieldguide review")
    print(f"-> {stage_metrics('label_check')} {LABEL_ERRORS_CSV} {LABEL_MAP_CSV}")


if __name__ == "__main__":
    run_command(main)
