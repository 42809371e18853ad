"""`make demo` works in any folder, and its network learns to segment.

No other test depends on how well a network has been trained.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from helpers import dvc_environment, git, make_repository, put_into_larger_repository
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.tiff import read_image, read_mask


def best_flair_threshold(folder: Path, slice_ids: list[str]) -> float:
    """Return the best micro IoU of thresholding FLAIR on the demo's slices."""
    images, masks = folder / "data/slices/images", folder / "data/slices/masks"
    flair = np.stack([read_image(slice_path(images, s))[..., 1] for s in slice_ids])
    mask = np.stack([read_mask(slice_path(masks, s)) for s in slice_ids])
    return max(
        float(((flair > t) & mask).sum() / ((flair > t) | mask).sum()) for t in range(0, 256, 4)
    )


def test_the_demo_runs_in_a_folder_with_any_name_and_beats_any_threshold(tmp_path: Path) -> None:
    """The project is a subfolder of a larger Git repository, and another DVC process runs in it."""
    project = make_repository(tmp_path / "Jörg's scans & more/脳 project")
    outer = put_into_larger_repository(project)
    rwlock = project / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(parents=True)
    locks = {
        str(project / path): {"pid": os.getpid(), "cmd": "dvc repro"} for path in ("data", ".")
    }
    rwlock.write_text(json.dumps({"write": locks}))

    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"],
        cwd=project,
        env=dvc_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "demo"
    assert str(folder / "report/index.html") in done.stdout
    assert (folder / "report/index.html").is_file()
    assert git(folder, "status", "--porcelain") == git(outer, "status", "--porcelain") == ""

    scores = json.loads((folder / "metrics/evaluate.json").read_text())["test"]
    splits = read_manifest(folder / "data/splits.csv")
    slice_ids = splits.loc[splits["split"] == "test", "slice_id"].tolist()
    assert scores["iou"] >= 0.5
    assert scores["iou"] > 2 * best_flair_threshold(folder, slice_ids) > 0  # empty masks score 0
