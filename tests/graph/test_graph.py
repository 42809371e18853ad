"""Check that dvc.yaml agrees with the scripts, and run the whole graph on a small phantom."""

import ast
import inspect
import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from helpers import (
    MODULES,
    ROOT,
    SMALL,
    all_imports,
    clone_with_outputs,
    dvc,
    dvc_environment,
    git,
    params,
    ran,
    write_params,
)
from pipeline.params import leaves
from team_page import user_environment

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Params that change only the speed of a stage. DVC does not track them.
UNTRACKED = {"compute.workers"}
EXPENSIVE = {"acquire", "fetch_encoder", "train", "predict", "export"}

IN_GIT = {"export": {"models/glioma.onnx", "models/glioma.json"}, "report": {"MODEL_CARD.md"}}

# The stages that track a section's params. Stages after them also run if an input changes.
RERUNS = {
    "seed": {"acquire", "split", "fetch_encoder", "train", "evaluate", "report", "join_folds"},
    "acquire": {
        *("acquire", "build_manifest", "measure_tissue", "explore", "export", "report"),
    },
    "phantom": {"acquire"},
    "split": {"split", "report"},
    "encoder": {"fetch_encoder", "train", "report"},
    "train": {"train", "report"},
    "predict": {"predict", "export", "report"},
    "evaluate": {"evaluate", "export", "report", "join_folds"},
    "export": {"export"},
    "report": {"report"},
    "compute": {"train", "predict"},
}


def reruns(param: str) -> set[str]:
    """Return the stages that run again because they track the param."""
    return set() if param in UNTRACKED else RERUNS[param.partition(".")[0]]


def entries(stage: dict[str, Any], *kinds: str) -> dict[str, dict[str, Any]]:
    """Return a stage's outputs of the given kinds: options by path."""
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        for entry in stage.get(kind, []):
            found |= entry if isinstance(entry, dict) else {entry: {}}
    return found


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_script_and_exactly_what_it_imports(name: str) -> None:
    """Expensive stages list single files, the others list packages."""
    code = {dep for dep in STAGES[name]["deps"] if dep.startswith("src/")}
    expected = {MODULES[module].relative_to(ROOT).as_posix() for module in all_imports(name)}
    if name not in EXPENSIVE:
        expected = {"/".join(path.split("/")[:2]) for path in expected}
    assert code == expected


@pytest.mark.parametrize("name", STAGES)
def test_the_command_lists_inputs_then_outputs(name: str) -> None:
    stage = STAGES[name]
    program, script, *paths = stage["cmd"].split()
    assert (program, script) == ("python", f"src/{name}.py")
    inputs = [dep for dep in stage["deps"] if not dep.startswith("src/")]
    if name not in {"restructure", "build_manifest"}:  # the others read these paths in the manifest
        inputs = [path for path in inputs if not path.startswith("data/slices/")]
    assert paths[: len(inputs)] == inputs
    written = paths[len(inputs) :]
    outputs = entries(stage, "outs", "metrics", "plots")
    assert all(any(Path(o).is_relative_to(w) for w in written) for o in outputs)
    assert all(any(Path(o).is_relative_to(w) for o in outputs) for w in written)


@pytest.mark.parametrize("name", STAGES)
def test_slices_that_a_script_finds_through_the_manifest_are_deps(name: str) -> None:
    """A script passes the columns that it reads to read_manifest: `image`, `mask` or both."""
    tree = ast.parse(MODULES[name].read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    columns = {
        str(argument.value)
        for call in calls
        if getattr(call.func, "id", "") == "read_manifest"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    arguments = set(STAGES[name]["cmd"].split())
    folders = {dep for dep in STAGES[name]["deps"] if dep.startswith("data/slices/")} - arguments
    assert folders == {f"data/slices/{column}s" for column in columns & {"image", "mask"}}


@pytest.mark.parametrize("name", STAGES)
def test_params_are_those_that_the_script_reads(name: str) -> None:
    tracked = []
    for parameter in inspect.signature(import_module(name).main).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            fields = getattr(parameter.annotation, "model_fields", {})
            keys = [f"{parameter.name}.{field}" for field in fields]
            tracked_keys = [key for key in keys if key not in UNTRACKED]
            tracked += [parameter.name] if tracked_keys == keys else tracked_keys
    assert STAGES[name].get("params", []) == tracked


def test_the_docstring_of_each_script_has_its_command() -> None:
    for name, stage in STAGES.items():
        docstring = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
        assert " ".join(stage["cmd"].split()) in " ".join(docstring.replace("\\", " ").split())


def test_every_stage_is_a_script_and_no_stage_imports_a_stage() -> None:
    for name in STAGES:
        assert all_imports(name) & STAGES.keys() == {name}


def test_metrics_and_plots_are_in_git_and_keep_the_run_cache() -> None:
    """An uncached or persistent entry of `outs` disables DVC's run cache for its stage.

    Two stages have such entries: the released model and the model card. No stage depends on them.
    """
    for name, stage in STAGES.items():
        assert all(options.get("cache") is False for options in entries(stage, "metrics").values())
        assert all(options.get("cache") is False for options in entries(stage, "plots").values())
        in_git = {path for path, options in entries(stage, "outs").items() if options}
        assert in_git == IN_GIT.get(name, set())
        assert all(entries(stage, "outs")[path] == {"cache": False} for path in in_git)
        assert "always_changed" not in stage


def ignored(path: str) -> bool:
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    return done.returncode == 0


def test_git_ignores_exactly_what_dvc_caches() -> None:
    for stage in STAGES.values():
        for path, options in entries(stage, "outs").items():
            assert ignored(path) is (options.get("cache") is not False)
        assert not any(ignored(path) for path in entries(stage, "metrics", "plots"))
    assert ignored("data/.raw.partial")
    assert ignored("metrics/.evaluate.json.partial")
    assert not any(ignored(str(path)) for path in MODULES.values())
    listed = subprocess.run(
        ["git", "ls-files", "*.gitignore"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert listed.stdout.split() == [".dvc/.gitignore", ".gitignore"]


def test_every_param_has_a_comment() -> None:
    for line in (ROOT / "params.yaml").read_text().splitlines():
        _, _, value = line.partition(":")
        if value and not line.lstrip().startswith("#"):
            assert "#" in value, line


def test_each_param_is_tracked_for_the_stages_of_its_section() -> None:
    for name, _ in leaves(params()):
        assert reruns(name) == {
            stage
            for stage, entry in STAGES.items()
            if any(f"{name}.".startswith(f"{tracked}.") for tracked in entry.get("params", []))
        }, name


@pytest.fixture(scope="module")
def whole_run(graph_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of `graph_run` that the tests of this module share."""
    return clone_with_outputs(graph_run, tmp_path_factory.mktemp("graph") / "with a space")


@pytest.fixture
def changeable_run(graph_run: Path, tmp_path: Path) -> Path:
    """Return a copy of `graph_run` that the test may change."""
    return clone_with_outputs(graph_run, tmp_path / "repository")


def test_the_whole_graph_runs_offline_and_writes_its_outputs(whole_run: Path) -> None:
    for stage in STAGES.values():
        for path in entries(stage, "outs", "metrics", "plots"):
            assert (whole_run / path).exists(), path
    scores = json.loads((whole_run / "metrics/evaluate.json").read_text())
    splits = pd.read_csv(whole_run / "data/splits.csv")
    assert {name: s["n_slices"] for name, s in scores.items()} == splits[
        "split"
    ].value_counts().to_dict()
    lock = yaml.safe_load((whole_run / "dvc.lock").read_text())
    assert set(lock["stages"]) == set(STAGES)


def test_a_second_run_finds_everything_up_to_date(whole_run: Path) -> None:
    done = dvc(whole_run, "repro")
    assert done.returncode == 0
    assert ran(done) == []
    assert "Data and pipelines are up to date." in done.stdout
    assert "Data and pipelines are up to date." in dvc(whole_run, "status").stdout


def test_git_sees_metrics_and_lock_but_no_data(whole_run: Path) -> None:
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=whole_run,
        check=True,
        capture_output=True,
        text=True,
    )
    changed = [line[3:] for line in status.stdout.splitlines()]
    assert changed
    in_git = r"metrics/|models/glioma\.|MODEL_CARD\.md|dvc\.lock|params\.yaml"
    assert all(re.match(in_git, path) for path in changed), changed


def test_metrics_show_and_plots_show_work(whole_run: Path, tmp_path: Path) -> None:
    shown = dvc(whole_run, "metrics", "show", "--json")
    found = json.loads(shown.stdout)[""]["data"]
    assert set(found) == {
        f"metrics/{name}.json"
        for name in ("evaluate", "explore", "fetch_encoder", "study", "train/metrics")
    }
    scores = json.loads((whole_run / "metrics/evaluate.json").read_text())["test"]
    shown_scores = {name: value for name, value in scores.items() if value is not None}
    assert found["metrics/evaluate.json"]["data"]["test"] == shown_scores
    assert {"iou", "iou_low", "iou_high", "n_patients", "detection_auroc"} <= shown_scores.keys()
    plots = dvc(whole_run, "plots", "show", "--json", "-o", str(tmp_path / "plots"))
    assert plots.returncode == 0, plots.stderr
    assert not json.loads(plots.stdout).get("errors")


@pytest.mark.parametrize("name", ["seed", "train.augment.flip", "compute.workers"])
def test_a_change_of_a_param_reruns_its_stages(changeable_run: Path, name: str) -> None:
    """Three cases: a tracked section, a value in a tracked section, and an untracked value."""
    value = dict(leaves(params(**SMALL)))[name]
    write_params(changeable_run, **{**SMALL, name.replace(".", "__"): value + 1})
    status = json.loads(dvc(changeable_run, "status", "--json").stdout)
    assert status.keys() == reruns(name)


def test_dvc_repro_shows_the_error_of_a_stage(changeable_run: Path) -> None:
    """Outputs of the stages before it stay out of Git."""
    rules = (changeable_run / ".gitignore").read_text()
    write_params(changeable_run, **{**SMALL, "split__test_fold": 3, "phantom__patients": 7})
    done = dvc(changeable_run, "repro", "split")
    assert done.returncode != 0
    assert ran(done) == ["acquire", "restructure", "build_manifest", "explore", "split"]
    assert re.search(r"split\.py: error: .*split\.test_fold\b.*\b3\b.*\b0\b.*\b2\b", done.stderr)
    assert "Traceback" not in done.stderr
    assert (changeable_run / ".gitignore").read_text() == rules
    test_git_sees_metrics_and_lock_but_no_data(changeable_run)


def test_an_earlier_run_comes_back_from_the_run_cache(changeable_run: Path) -> None:
    before = (changeable_run / "metrics/evaluate.json").read_text()
    write_params(changeable_run, **{**SMALL, "evaluate__threshold": 1e-4})
    assert set(ran(dvc(changeable_run, "repro"))) == RERUNS["evaluate"]
    assert (changeable_run / "metrics/evaluate.json").read_text() != before
    write_params(changeable_run, **SMALL)
    done = dvc(changeable_run, "repro")
    assert sorted(ran(done)) == ["export", "report"]
    assert "Stage 'evaluate' is cached - skipping run" in done.stdout
    assert (changeable_run / "metrics/evaluate.json").read_text() == before


def test_a_checkout_on_windows_has_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    git(repository, "clone", "--quiet", "--config=core.autocrlf=true", ".", str(tmp_path / "clone"))
    for name in git(repository, "ls-files", "-z").strip("\0").split("\0"):
        assert (tmp_path / "clone" / name).read_bytes() == (repository / name).read_bytes(), name


@pytest.mark.parametrize("name", ["archive (1).zip", "M\xfcller, A.zip", "~x=1#.zip"])
def test_the_quotes_in_the_docs_work_for_a_data_set_with_any_name(
    repository: Path, phantom: Path, tmp_path: Path, name: str
) -> None:
    page = (ROOT / "docs/own-data.md").read_text()
    [line] = re.findall("^dvc exp run .*/absolute/path/to/.*", page, re.MULTILINE)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", phantom))
    archive.rename(tmp_path / name)
    command = line.replace("/absolute/path/to/my data", str(tmp_path / name))
    assert command != line
    environment = dvc_environment() | user_environment(tmp_path)
    done = subprocess.run(
        ["bash", "-c", f"{command} acquire"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"data/raw\b.*\b10 patients\b", done.stdout)
