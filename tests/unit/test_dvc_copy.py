"""Restoring outputs from DVC; tests/slow/test_graph_runs.py does it in the graph."""

from pathlib import Path

import pytest

from pipeline.dvc_copy import recorded_params, restore

LOCK = """\
schema: '2.0'
stages:
  acquire:
    cmd: python src/acquire.py data/raw
    params:
      params.yaml:
        acquire:
          dataset: lgg
        encoder.name: resnet18
        seed: 1
  restructure:
    cmd: python src/restructure.py
"""


def test_recorded_params_have_dotted_names(tmp_path: Path) -> None:
    lock_file = tmp_path / "dvc.lock"
    assert recorded_params("acquire", lock_file) == {}
    lock_file.write_text(LOCK)
    assert recorded_params("acquire", lock_file) == {
        "acquire.dataset": "lgg",
        "encoder.name": "resnet18",
        "seed": 1,
    }
    assert recorded_params("restructure", lock_file) == {}
    assert recorded_params("train", lock_file) == {}
    lock_file.write_text("")
    assert recorded_params("acquire", lock_file) == {}


def test_nothing_is_restored_for_other_params_or_without_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(LOCK)
    raw, target = Path("data/raw"), tmp_path / "target"
    assert not restore(raw, target, stage="acquire", params={"acquire.dataset": "other"})
    assert not restore(raw.absolute(), target, stage="acquire", params={"acquire.dataset": "lgg"})
    assert capsys.readouterr().out == ""
    assert not restore(raw, target, stage="acquire", params={"acquire.dataset": "lgg"})
    assert "no copy of data/raw" in capsys.readouterr().out
    assert not target.exists()
