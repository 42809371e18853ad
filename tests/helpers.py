"""Functions and constants that tests share: params, repositories, DVC, predictions, imports."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import settings
from lightning_fabric import Fabric
from torch import nn

import demo
from learning.inference import predict_slices
from learning.network import Network
from pipeline.params import Section
from scans.fitted import Slices, read_batches
from scans.manifest import read_manifest
from scans.normalization import NONE
from scans.probability_maps import encode, write_levels

# Remove variables that a Git hook or the user may have set.
for name in [variable for variable in os.environ if variable.startswith(("GIT_", "DVC_"))]:
    del os.environ[name]
os.environ |= demo.DEFAULTS
# On a busy machine, an example of Hypothesis may exceed any deadline.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# One thread per process, so that parallel test processes do not slow each other down.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the stages that tests start

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGES = {path.parent.name for path in SRC.glob("*/__init__.py")}
MODULES = {  # file by dotted name; the name of a script has no dot
    ".".join(path.relative_to(SRC).with_suffix("").parts): path
    for path in SRC.rglob("*.py")
    if path.name != "__init__.py"
}
SIZE = 48  # pixels; not divisible by 32, so that images have to be padded


class Outcome(NamedTuple):
    """The exit code of a stage, and what it wrote to standard error."""

    code: int
    error: str


class Data(NamedTuple):
    """The paths of a phantom and of the outputs of the data stages."""

    raw: Path
    images: Path
    masks: Path
    manifest: Path
    patients: Path
    intensities: Path
    findings: Path  # an empty table
    splits: Path
    geometry: Path  # an empty table


class Stub(nn.Module):
    """A network without encoder or context; subclasses define `forward`."""

    context: ClassVar[list[nn.Module]] = []

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]

    mix_context = Network.mix_context

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self(features[0])
        return logits


class PresetNetwork(Stub):
    """A network that returns preset answers: a logit of 5 where an answer is true, else -5."""

    def __init__(self, answers: list[np.ndarray], size: int) -> None:
        super().__init__()
        self.answers, self.size = list(answers), size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(images), self.size, self.size), -5.0)
        for slot in logits:
            answer = torch.from_numpy(self.answers.pop(0))
            slot[: answer.shape[0], : answer.shape[1]][answer] = 5.0
        return logits


def direct_imports(module: str) -> set[str]:
    """Return the project's modules that a module imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & MODULES.keys()


def all_imports(module: str) -> set[str]:
    """Return a module and all of the project's modules that it imports, directly or not."""
    found, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= direct_imports(name) - found
    return found


def rows_of(data: Data, slice_ids: list[str]) -> pd.DataFrame:
    """Return the rows of slices in the manifest, in the order of `slice_ids`."""
    table = read_manifest(data.splits).set_index("slice_id", drop=False)
    return table.loc[slice_ids].reset_index(drop=True)


def moved(table: pd.DataFrame, **folders: Path) -> pd.DataFrame:
    """Return a manifest in which the files of a column (`image`, `mask`) are in another folder."""
    return table.assign(
        **{
            column: [(folder / Path(path).name).as_posix() for path in table[column]]
            for column, folder in folders.items()
        }
    )


def predicted(
    network: nn.Module,
    data: Data,
    slice_ids: list[str],
    *,
    image_size: int = SIZE,
    batch_size: int = 7,
    flips: bool = False,
) -> dict[str, np.ndarray]:
    """Return a network's logits for slices of the phantom by slice id, computed on the CPU."""
    slices = Slices(rows_of(data, slice_ids))
    answers = predict_slices(
        Fabric(accelerator="cpu", devices=1),
        network,  # type: ignore[arg-type]
        read_batches(slices, batch_size, image_size=image_size, normalization=NONE),
        slices,
        image_size=image_size,
        flips=flips,
    )
    return dict(zip(slices.ids, answers, strict=True))


# The params of a training that takes seconds and gives the same bits on any CPU.
QUICK: dict[str, Any] = {
    "train__epochs": 2,
    "train__image_size": 48,
    "train__normalize": "none",
    "train__batch_size": 8,
    "compute__workers": 0,
    "compute__precision": "32-true",
    "compute__device": "cpu",
}
RunStage = Callable[..., Outcome]


def params(**overrides: Any) -> dict[str, Any]:
    """Return the values of params.yaml with overrides, such as `train__epochs=2`."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, value in overrides.items():
        section: dict[str, Any] = values
        *path, key = name.split("__")
        for part in path:
            section = section[part]
        section[key] = value
    return values


S = TypeVar("S", bound=Section)


def section(kind: type[S], **changes: Any) -> S:
    """Return a section of params.yaml as an object of its class, with some values changed."""
    name = kind.__name__.removesuffix("Params").lower()
    values = params()[name] if name != "augment" else params()["train"][name]
    return kind(**values | changes)


def write_maps(folder: Path, probabilities: dict[str, np.ndarray]) -> None:
    """Write probability maps in the format of the predict stage."""
    for slice_id, probability in probabilities.items():
        inside = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
        write_levels(encode(np.log(inside / (1 - inside))), folder, slice_id)


def noisy(masks: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Return mostly correct probabilities for masks, between 0.001 and 0.999."""
    rng = np.random.default_rng(seed)
    return {
        slice_id: np.clip(0.7 * mask + rng.normal(0.12, 0.12, mask.shape), 0.001, 0.999)
        for slice_id, mask in masks.items()
    }


def make_repository(folder: Path) -> Path:
    """Create a Git repository in `folder` with the project's files from the working tree."""
    with chdir(ROOT):
        demo.copy_project(folder)
    return folder


OFFLINE = {  # nothing listens on port 9, so requests fail at once
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "1",
    "LGG_ARCHIVE": "",
    "ENCODER_WEIGHTS": "",
}


def dvc_environment() -> dict[str, str]:
    """Return an environment without network, with this interpreter as `python` and PYTHON."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **OFFLINE, "PATH": path, "PYTHON": sys.executable}


def dvc(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a dvc command in a repository, in the environment of `dvc_environment`."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env=dvc_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# Params with which the whole graph runs in a minute.
SMALL: dict[str, Any] = {
    "acquire__dataset": "phantom",
    "phantom__patients": 6,
    "phantom__image_size": 40,
    "split__folds": 3,
    "encoder__weights": "none",
    "train__epochs": 1,
    "train__image_size": 32,
    "train__batch_size": 8,
    "evaluate__resamples": 100,
    "compute__device": "cpu",
    "compute__precision": "32-true",
    "compute__workers": 0,
}


def write_params(folder: Path, **overrides: Any) -> None:
    """Write a params.yaml with overrides, such as `train__epochs=2`."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params(**overrides), sort_keys=False))


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the stages that a dvc command ran, in order."""
    return re.findall(r"Running stage '(\w+)'", done.stdout)


def shared_repository(
    tmp_path_factory: pytest.TempPathFactory, name: str, work: Callable[[Path], None]
) -> Path:
    """Return a repository to which `work` was applied once, shared by all pytest workers."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = make_repository(shared / f"{name}.partial")
            work(partial)
            partial.rename(folder)
    return folder


def run_graph(folder: Path) -> None:
    (folder / "dvc.lock").unlink()
    write_params(folder, **SMALL)
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert sorted(ran(done)) == sorted(stages)


def clone_with_outputs(source: Path, folder: Path) -> Path:
    """Copy a repository with its cache and outputs, keeping file times and links."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--archive", source, folder], check=True)
    return folder


def git(folder: Path, *words: str) -> str:
    """Run a Git command in a folder; return its output."""
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit_all(folder: Path) -> None:
    """Set a user name in a Git repository and commit everything."""
    git(folder, "config", "user.name", "t")
    git(folder, "config", "user.email", "t@example.org")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=All of it")


def put_into_larger_repository(project: Path) -> Path:
    """Make the project a subfolder of a new Git repository; return the new repository's root."""
    shutil.rmtree(project / ".git")
    git(project.parent, "init", "--quiet", "--initial-branch=main")
    commit_all(project.parent)
    return project.parent
