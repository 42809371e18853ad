"""Run the graph in another folder, with other params, with bad input, and without its sources."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from safetensors import safe_open

from helpers import SMALL, clone_with_outputs, dvc, make_repository, ran, write_params


@pytest.fixture
def run_to_change(graph_run: Path, tmp_path: Path) -> Path:
    """Return a repository in which the graph has run; the test may change it."""
    return clone_with_outputs(graph_run, tmp_path / "repository")


def test_another_folder_and_number_of_workers_give_the_same_bytes(
    graph_run: Path, tmp_path: Path
) -> None:
    """dvc.lock has the hash of every output, including metrics and curves."""
    folder = make_repository(tmp_path / "elsewhere/and deeper")
    (folder / "dvc.lock").unlink(missing_ok=True)
    write_params(folder, **{**SMALL, "compute__workers": 2})
    done = dvc(folder, "repro", PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stdout + done.stderr
    locks = [yaml.safe_load((run / "dvc.lock").read_text()) for run in (graph_run, folder)]
    assert locks[0] == locks[1]
    environments = [
        json.loads((run / "metrics/train/environment.json").read_text())
        for run in (graph_run, folder)
    ]
    assert environments[0] == environments[1]
    assert environments[0]["threads"] == 1
    outputs = [out["path"] for stage in locks[1]["stages"].values() for out in stage["outs"]]
    written = [path for path in outputs if path.startswith("metrics/")]
    assert len(written) > 10
    for path in written:
        for file in (folder / path).rglob("*") if (folder / path).is_dir() else [folder / path]:
            assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_dvc_repro_shows_the_errors_of_stages(
    run_to_change: Path, phantom: Path, tmp_path: Path
) -> None:
    """The same check as in tests/graph, where it covers split."""
    damaged = tmp_path / "damaged"
    shutil.copytree(phantom, damaged)
    mask = min(damaged.glob("*/*_mask.tif"))
    mask.unlink()
    scan = f"data/raw/{mask.relative_to(damaged).as_posix().replace('_mask', '')}"
    archive, weights = tmp_path / "broken.zip", tmp_path / "weights.safetensors"
    archive.write_bytes(b"PK")
    weights.write_bytes(b"no tensors")
    rows: list[tuple[dict[str, Any], str, str]] = [
        ({"acquire__dataset": str(archive)}, "acquire", re.escape(str(archive))),
        ({"acquire__dataset": str(damaged)}, "restructure", re.escape(scan)),
        ({"encoder__weights": str(weights)}, "fetch_encoder", re.escape(str(weights))),
        ({"train__learning_rate": 1e30}, "train", r"epoch 1\b.*\btrain\.learning_rate\b"),
    ]
    for overrides, stage, facts in rows:
        write_params(run_to_change, **{**SMALL, **overrides})
        done = dvc(run_to_change, "repro", stage)
        assert done.returncode != 0, stage
        assert ran(done)[-1] == stage
        assert re.search(facts, done.stderr)
        assert f"{stage}.py: error: " in done.stderr
        assert "Traceback" not in done.stderr


def test_an_experiment_trains_with_other_params(run_to_change: Path) -> None:
    overrides = {
        "split.by": "slice",
        "split.val_fraction": "0.15",
        "encoder.name": "resnet18",
        "train.image_size": "64",
        "train.learning_rate": "1e-5",
    }
    words = [word for name, value in overrides.items() for word in ("-S", f"{name}={value}")]
    done = dvc(run_to_change, "exp", "run", "--name", "other-recipe", *words, "train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(done) == ["split", "fetch_encoder", "train"]
    with safe_open(run_to_change / "models/unet.safetensors", framework="np") as file:
        model = json.loads(file.metadata()["network"])
    assert (model["encoder_name"], model["image_size"]) == ("resnet18", 64)
    splits = pd.read_csv(run_to_change / "data/splits.csv")
    assert splits.groupby("patient_id")["split"].nunique().max() == 3
    lock = yaml.safe_load((run_to_change / "dvc.lock").read_text())["stages"]["train"]
    assert float(lock["params"]["params.yaml"]["train"]["learning_rate"]) == 1e-5


def test_data_and_weights_in_the_cache_are_not_fetched_again(
    repository: Path, phantom: Path, tmp_path: Path
) -> None:
    """Another seed reruns acquire and fetch_encoder, even if their sources are gone by then."""
    source = tmp_path / "source"
    source.symlink_to(phantom)
    random = tmp_path / "weights.safetensors"
    write_params(repository, encoder__weights="none", acquire__dataset=str(source))
    assert dvc(repository, "repro", "acquire", "fetch_encoder").returncode == 0
    (repository / "models/encoder.safetensors").rename(random)
    write_params(repository, acquire__dataset=str(source))
    done = dvc(repository, "repro", "acquire", "fetch_encoder", ENCODER_WEIGHTS=str(random))
    assert done.returncode == 0, done.stderr
    lock = yaml.safe_load((repository / "dvc.lock").read_text())["stages"]
    source.unlink()

    write_params(repository, acquire__dataset=str(source), seed=2)
    done = dvc(repository, "repro", "acquire", "fetch_encoder")
    assert done.returncode == 0, done.stderr
    assert set(ran(done)) == {"acquire", "fetch_encoder"}
    for output in ("data/raw", "models/encoder.safetensors"):
        assert re.search(rf"^.*{output}\b.*\bdvc\.lock\b", done.stdout, re.M), output
    again = yaml.safe_load((repository / "dvc.lock").read_text())["stages"]
    for stage in ("acquire", "fetch_encoder"):
        assert again[stage]["outs"] == lock[stage]["outs"]

    missing = tmp_path / "missing"
    write_params(repository, acquire__dataset=str(missing))
    done = dvc(repository, "repro", "acquire")
    assert done.returncode != 0
    assert re.search(rf"acquire\.py: error: .*{re.escape(str(missing))}", done.stderr)
