"""Cause errors, run the commands that their messages give, and check that these commands help."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import md5
from pathlib import Path

import pandas as pd
import pytest
import yaml

from helpers import (
    MODULES,
    SMALL,
    clone_with_outputs,
    dvc,
    dvc_environment,
    make_repository,
    ran,
    write_params,
)

# Every command that a message gives, and the test that runs it.
FOLLOWED = {
    "`dvc repro …": "here",
    "`make verify`": "here",
    "`dvc repro`": "here, by verify",
    "`dvc pull`": "here, by verify; team/test_remotes.py",
    "`dvc repro -f acquire`": "here",
    "`kill …": "slow/test_interruptions.py",
    "`git restore metrics models MODEL_CARD.md dvc.lock && dvc checkout`": (
        "slow/test_interruptions.py"
    ),
    "`git restore models`": "here",
    "`git init && git add .`": "graph/test_demo.py",
    "`make demo`": "slow/test_demo_run.py",
    "`python study/run.py`": "slow/test_study_run.py",
}
REPORTED = {"`git`", "`git …", "`dvc exp run`"}  # messages say that these failed


def test_a_test_runs_every_command_that_a_message_gives() -> None:
    found = set()
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = list(ast.walk(tree))
        docs = {
            ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, documented)
        }
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pattern = r"`(?:dvc|git|kill|make|python)\b[^`]*`?"
                found |= set(re.findall(pattern, "" if node.value in docs else node.value))
    found = {f"{command}…" if command.endswith(" ") else command for command in found}
    assert found - REPORTED == FOLLOWED.keys()


@pytest.fixture
def brain(committed_run: Path, tmp_path: Path) -> Path:
    """Return a repository in which the graph has run; the test may change it."""
    return clone_with_outputs(committed_run, tmp_path / "brain")


def run(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a repository."""
    return subprocess.run(
        words, cwd=repository, env=dvc_environment(), capture_output=True, text=True, check=False
    )


def run_without_dvc(repository: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage's command from dvc.yaml directly."""
    command = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"][stage]["cmd"]
    return run(repository, "bash", "-c", command)


def first(folder: str) -> Callable[[Path], Path]:
    return lambda repository: min((repository / folder).iterdir())


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a function that changes a file's bytes and its time, so that DVC notices."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return damage


def without_a_row(path: Path) -> None:
    pd.read_csv(path, dtype=str).iloc[1:].to_csv(path, index=False)


cut_off = rewrite(lambda content: content[: len(content) // 2])
emptied = rewrite(lambda _: b"")
Damage = tuple[str | Callable[[Path], Path], Callable[[Path], None], str, str]
DAMAGES: dict[str, Damage] = {
    # The damaged file, how it is damaged, the stage that finds it, and the stage to repeat.
    "map cut off": (first("data/predictions"), cut_off, "evaluate", "predict"),
    "scan gone": (first("data/slices/images"), Path.unlink, "measure_tissue", "restructure"),
    "splits emptied": ("data/splits.csv", emptied, "evaluate", "split"),
    "patients of another table": ("data/patients.csv", without_a_row, "explore", "build_manifest"),
    "intensities emptied": ("data/intensities.csv", emptied, "predict", "measure_tissue"),
    "findings emptied": ("metrics/explore/findings.csv", emptied, "split", "explore"),
    "encoder cut off": ("models/encoder.safetensors", cut_off, "train", "fetch_encoder"),
    "model cut off": ("models/unet.safetensors", cut_off, "predict", "train"),
    "scores cut off": ("metrics/evaluate.json", cut_off, "report", "report"),
}


def locate(repository: Path, where: str | Callable[[Path], Path]) -> Path:
    return repository / where if isinstance(where, str) else where(repository)


@pytest.mark.parametrize("name", DAMAGES)
def test_repeating_the_stage_that_a_message_names_repairs_the_file(brain: Path, name: str) -> None:
    where, damage, stage, repeated = DAMAGES[name]
    path = locate(brain, where)
    before = path.read_bytes()
    damage(path)
    refused = run_without_dvc(brain, stage)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert path.name in refused.stderr
    [advice] = re.findall(r"`(dvc repro \w+)`", refused.stderr)
    assert advice == f"dvc repro {repeated}"
    followed = dvc(brain, *advice.split()[1:])
    assert followed.returncode == 0, followed.stderr
    assert path.read_bytes() == before


def flip_bit(path: Path, offset: int) -> None:
    """Change one bit and keep the file's time, as a failing disk does."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(before.st_mode)


def n_outputs(repository: Path) -> int:
    """Return how many outputs dvc.lock records."""
    stages = yaml.safe_load((repository / "dvc.lock").read_text())["stages"]
    return sum(len(stage["outs"]) for stage in stages.values())


@pytest.mark.parametrize("is_pushed", [True, False])
def test_verify_finds_damage_that_dvc_misses(brain: Path, is_pushed: bool) -> None:
    """Outputs and their cached copies are damaged, so `dvc repro` would use damaged files."""
    if is_pushed:
        assert dvc(brain, "push").returncode == 0
    assert "up to date" in dvc(brain, "status").stdout  # DVC stores the files' times
    intact = run(brain, "make", "verify")
    assert intact.returncode == 0, intact.stderr
    assert re.search(rf"^{n_outputs(brain)} .*dvc\.lock", intact.stdout, re.M)
    paths = [first("data/predictions")(brain), brain / "data/splits.csv"]
    before = [path.read_bytes() for path in paths]
    digests = [md5(content).hexdigest() for content in before]  # noqa: S324
    objects = [brain / ".dvc/cache/files/md5" / digest[:2] / digest[2:] for digest in digests]
    for path in (*paths, *objects):
        flip_bit(path, 40)
    assert "up to date" in dvc(brain, "status").stdout
    refused = run(brain, "make", "verify")
    assert refused.returncode != 0
    [remove] = re.findall("^ +(rm .*)", refused.stderr, re.M)
    named = [path.relative_to(brain).as_posix() for path in (*objects, *paths)]
    assert sorted(set(shlex.split(remove)) & set(named)) == sorted(named)
    for each in named:
        assert refused.stderr.count(each) == 2  # in the list of problems and in the command
    subprocess.run(["bash", "-c", remove], cwd=brain, check=True)
    assert (dvc(brain, "pull").returncode == 0) is is_pushed
    repeated = dvc(brain, "repro")
    assert repeated.returncode == 0, repeated.stderr
    assert ran(repeated) == [] if is_pushed else ["split", "predict"]
    assert [path.read_bytes() for path in paths] == before
    assert run(brain, "make", "verify").returncode == 0


def test_a_corrected_source_is_read_after_repro_with_force(phantom: Path, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    source = Path(shutil.copytree(phantom, tmp_path / "source"))
    write_params(repository, **{**SMALL, "acquire__dataset": str(source)})
    mask, clinical = min(source.glob("*/*_mask.tif")), source / "data.csv"
    whole, table = mask.read_bytes(), clinical.read_bytes()
    mask.unlink()
    clinical.write_bytes(b"Patient\nA,1\nB,1,2\n")
    for path, content in ((mask, whole), (clinical, table)):
        refused = dvc(repository, "repro", "build_manifest")
        assert refused.returncode != 0
        assert "`dvc repro -f acquire`" in refused.stderr
        path.write_bytes(content)
        followed = dvc(repository, "repro", "-f", "acquire")
        assert followed.returncode == 0, followed.stderr
    assert dvc(repository, "repro", "build_manifest").returncode == 0


def test_the_command_in_the_message_restores_a_lost_model(repository: Path, tmp_path: Path) -> None:
    model = repository / "models/glioma.onnx"
    kept = model.read_bytes()
    model.write_bytes(b"damaged")
    command = [sys.executable, "src/segment.py", "scan.nii", "--out", str(tmp_path / "out")]
    for content in (b"damaged", None):
        model.unlink()
        if content:
            model.write_bytes(content)
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "`git restore models`" in done.stderr
        subprocess.run(["git", "restore", "models"], cwd=repository, check=True)
        assert model.read_bytes() == kept
