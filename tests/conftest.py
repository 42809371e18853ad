"""Fixtures that tests share: phantoms, outputs of stages, repositories, a report, a browser."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from selenium import webdriver

import build_manifest
import measure_tissue
import restructure
import split
from browsing import start_browser
from helpers import (
    SIZE,
    Data,
    Outcome,
    RunStage,
    clone_with_outputs,
    commit_all,
    make_repository,
    params,
    run_graph,
    section,
    shared_repository,
)
from learning.network import Encoder, build_encoder
from learning.weights import save_tensors
from pipeline import command
from scans.geometry import write_geometry
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.params import AcquireParams, SplitParams
from scans.phantom import write_phantom
from scans.tiff import read_mask

if TYPE_CHECKING:
    from report_inputs import Inputs, Written


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed PyTorch, so that no test depends on the ones before it."""
    torch.manual_seed(0)


@pytest.fixture
def run_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunStage:
    """Return a function that runs a stage's main as a command, in a folder with a params.yaml."""

    def run(main: Callable[..., None], paths: Sequence[Path], **overrides: Any) -> Outcome:
        monkeypatch.chdir(tmp_path)
        Path("params.yaml").write_text(yaml.safe_dump(params(**overrides)))
        capsys.readouterr()
        try:
            command.run(main, argv=[str(path) for path in paths])
        except SystemExit as stop:
            return Outcome(int(stop.code or 0), capsys.readouterr().err)
        return Outcome(0, capsys.readouterr().err)

    return run


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the raw folder of ten phantom patients; tests must not change it."""
    raw = tmp_path_factory.mktemp("phantom") / "raw"
    write_phantom(raw, seed=7, patients=10, image_size=SIZE)
    return raw


@pytest.fixture
def raw(phantom: Path, tmp_path: Path) -> Path:
    """Return a copy of the phantom that the test may change."""
    return Path(shutil.copytree(phantom, tmp_path / "raw"))


@pytest.fixture(scope="session")
def data(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return the phantom after the data stages; tests must not change it."""
    folder = tmp_path_factory.mktemp("data")
    paths = Data(
        phantom,
        folder / "slices/images",
        folder / "slices/masks",
        folder / "manifest.csv",
        folder / "patients.csv",
        folder / "intensities.csv",
        folder / "findings.csv",
        folder / "splits.csv",
        folder / "geometry.csv",
    )
    restructure.main(paths.raw, paths.images, paths.masks)
    acquire_params = section(AcquireParams)
    write_geometry(paths.geometry, [])
    build_manifest.main(
        *(paths.images, paths.masks, paths.raw / "data.csv", paths.manifest, paths.patients),
        acquire=acquire_params,
    )
    measure_tissue.main(paths.manifest, paths.intensities, acquire=acquire_params)
    paths.findings.write_text("kind,file,patient_id,value,other\n")
    split_params = section(SplitParams, val_fraction=0.15)
    split.main(*paths[3:5], paths.findings, paths.splits, seed=1, split=split_params)
    return paths


@pytest.fixture(scope="session")
def masks(data: Data) -> dict[str, np.ndarray]:
    """Return the reference masks of the phantom by slice id."""
    ids = read_manifest(data.splits)["slice_id"]
    return {slice_id: read_mask(slice_path(data.masks, slice_id)) for slice_id in ids}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Return the file of an encoder with random weights."""
    torch.manual_seed(0)
    path = tmp_path / "encoder.safetensors"
    save_tensors(build_encoder("mobilenet_v2").state_dict(), Encoder("mobilenet_v2"), path)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a new repository, which the test may change."""
    return make_repository(tmp_path / "repository")


@pytest.fixture(scope="session")
def graph_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository after `dvc repro` without network; the results are not committed.

    Tests must not change it. They copy it with `clone_with_outputs`.
    """
    return shared_repository(tmp_path_factory, "graph_run", run_graph)


@pytest.fixture(scope="session")
def committed_run(graph_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of `graph_run` with the results committed; tests must not change it."""
    folder = clone_with_outputs(graph_run, tmp_path_factory.mktemp("committed_run") / "brain")
    commit_all(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(
    data: Data, masks: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> "Inputs":
    """Return the inputs of the report; tests must not change them."""
    from report_inputs import make_inputs  # report_inputs imports this module

    return make_inputs(tmp_path_factory.mktemp("inputs"), data, masks)


@pytest.fixture(scope="session")
def written(inputs: "Inputs", tmp_path_factory: pytest.TempPathFactory) -> "Written":
    """Return the report on `inputs`; tests must not change it."""
    from report_inputs import write_report

    return write_report(inputs, tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    browser = start_browser()
    yield browser
    browser.quit()
