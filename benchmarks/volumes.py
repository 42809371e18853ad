"""Time and memory of reading NIfTI volumes as the number of patients grows.

    python benchmarks/volumes.py --patients 4 8 16 32

One patient is made up as in BraTS: four sequences and a mask of 240 × 240 × 155 voxels, linked
under as many names. Then `acquire` runs on each number of patients. Its memory is that of its
process and children together, sampled every 20 ms.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml
from nibabel.nifti1 import Nifti1Image
from scipy.ndimage import gaussian_filter

from measure import growth, run_command

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("t1n", "t1c", "t2f", "t2w")


def make_patient(folder: Path, shape: tuple[int, ...], seed: int) -> dict[str, Path]:
    """Write one patient's files and return them by the word that tells the sequence."""
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    where = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.linalg.norm(where, axis=0)
    found = {}
    for word in (*WORDS, "seg"):
        texture = gaussian_filter(rng.standard_normal(shape), 2)
        values = (radius < 0.7) * (600 + 2000 * texture) + 5 * rng.standard_normal(shape)
        labels = 2 * (radius < 0.2) + (radius < 0.1)
        kept = labels.astype(np.uint8) if word == "seg" else values.clip(0).astype(np.int16)
        found[word] = folder / f"{word}.nii.gz"
        nibabel.save(Nifti1Image(kept, affine), found[word])
    return found


def cost_of(n_patients: int, files: dict[str, Path], scratch: Path) -> dict[str, float]:
    """Return the seconds and the peak memory in MiB of acquire for so many patients."""
    source, run = scratch / "source", scratch / "run"
    for number in range(n_patients):
        name = f"BraTS-GLI-{number:05}-000"
        (source / name).mkdir(parents=True)
        for word, path in files.items():
            os.link(path, source / name / f"{name}-{word}.nii.gz")
    run.mkdir()
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["acquire"]["dataset"] = str(source)
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, str(ROOT / "src/acquire.py"), "data/raw", "data/geometry.csv"]
    seconds, occupied = run_command(command, str(run))
    shutil.rmtree(source)
    shutil.rmtree(run)
    return {"seconds": seconds, "memory_mib": occupied / 2**20}


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155], help="voxels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    sizes = sorted(set(arguments.patients))
    if len(sizes) < 2:
        parser.error("--patients: two numbers or more")
    with tempfile.TemporaryDirectory() as scratch:
        files = make_patient(Path(scratch), tuple(arguments.shape), arguments.seed)
        costs = {size: cost_of(size, files, Path(scratch)) for size in sizes}
    result: dict[str, Any] = {
        "costs": costs,
        "growth": {
            key: growth(sizes, [costs[size][key] for size in sizes])
            for key in ("seconds", "memory_mib")
        },
    }
    print(f"{'patients':>10}{'seconds':>10}{'MiB':>10}")
    for size, cost in costs.items():
        print(f"{size:10}{cost['seconds']:10.1f}{cost['memory_mib']:10.0f}")
    powers = result["growth"]
    print(f"{'growth':>10}{powers['seconds']:10.2f}{powers['memory_mib']:10.2f}")
    print("growth: the power of the number of patients that fits best; 1 is linear")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
