"""The sample as `make run` draws it: the split check finds the copies and the conflict that are planted, and nothing else."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from stages import download, split_check
from support import ROOT


@pytest.mark.slow
def test_the_split_check_finds_what_is_planted_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    download.main()
    split_check.main()
    with (ROOT / "fieldguide" / "sources" / "sample_faults.csv").open(encoding="utf-8", newline="") as stream:
        planted = list(csv.DictReader(stream))
    copies = {fault["file"] for fault in planted if fault["kind"] == "copy"}
    conflict = {file for fault in planted if fault["kind"] == "label conflict" for file in (fault["file"], fault["other"])}
    found = pd.read_csv("metrics/findings.csv").groupby("kind")["id"].agg(set).to_dict()
    assert found == {"leak": copies, "label conflict": conflict}
    manifest = pd.read_csv("data/manifest.csv", keep_default_na=False)
    assert set(manifest.loc[~manifest["use"], "id"]) == copies | conflict
