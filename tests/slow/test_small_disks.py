"""With too small a file system, stages print an error and leave no partial file; none hangs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers import QUICK, SRC, Data, params

PRIVATE = ("unshare", "--mount", "--map-root-user", "bash", "-c")


def can_mount() -> bool:
    try:
        trial = subprocess.run([*PRIVATE, "mount -t tmpfs tmpfs /mnt"], capture_output=True)
    except FileNotFoundError:
        return False
    return trial.returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="no right to mount a file system here")


def run_with(place: Path, size: str, folder: Path, *words: str | Path) -> tuple[int, str]:
    """Run a script with a small file system at `place`; return exit code and standard error."""
    mount = f"mount -t tmpfs -o size={size} tmpfs {place} && "
    done = subprocess.run(
        [*PRIVATE, mount + 'exec "$@"', "bash", sys.executable, *map(str, words)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def prepare(folder: Path, **overrides: object) -> None:
    (folder / "models").mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params(**{**QUICK, **overrides})))


def test_train_and_fetch_encoder_report_a_full_disk(
    data: Data, encoder: Path, tmp_path: Path
) -> None:
    prepare(tmp_path, encoder__weights="none", train__epochs=1)
    models = tmp_path / "models"
    fetch = (SRC / "fetch_encoder.py", "models/encoder.safetensors", "metrics.json")
    train = (
        *(SRC / "train.py", data.intensities, data.splits, encoder),
        *("models/unet.safetensors", "metrics/train"),
    )
    for stage in (fetch, train):
        code, error = run_with(models, "4m", tmp_path, *stage)
        assert code == 1, error
        assert "No space left on device" in error
        assert "Traceback" not in error
    assert not list(models.iterdir())


PREPARE = """
import sys
from pathlib import Path

import torch

from learning.batches import Batches, BatchMaker, BatchOrder
from learning.device import explain_failures
from scans.fitted import FittedSlices, Slices
from pipeline.command import run
from scans.normalization import NONE
from scans.manifest import read_manifest


def main(splits: Path, scratch: Path) -> None:
    slices = Slices(read_manifest(splits))
    maker = BatchMaker(FittedSlices(slices, image_size=256, normalization=NONE, folder=scratch))
    order = BatchOrder(len(slices), 8, seed=1)
    with explain_failures("train.batch_size"):
        list(Batches(maker, order, device=torch.device("cuda"), workers=2))


run(main)
"""


def test_a_small_dev_shm_ends_the_training_with_advice(data: Data, tmp_path: Path) -> None:
    """Containers may have a small /dev/shm. A batch of 8 slices at 256 pixels takes 2 MB of it.

    Only the workers that prepare batches for a GPU use shared memory; they run here without a GPU.
    """
    prepare(tmp_path)
    script = tmp_path / "prepare.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(SRC)!r})\n{PREPARE}")
    code, error = run_with(Path("/dev/shm"), "3m", tmp_path, script, data.splits, tmp_path)
    assert code == 1, error
    assert "No space left on device" in error
    for fact in ("/dev/shm", "docker run --shm-size=1g", "compute.workers", "train.batch_size"):
        assert fact in error
    assert "Traceback" not in error
