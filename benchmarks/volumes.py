"""Time and memory of reading NIfTI volumes for growing numbers of patients.

    python benchmarks/volumes.py --patients 4 8 16 32

The benchmark creates one synthetic patient like those of BraTS (four sequences and a mask of
240 × 240 × 155 voxels) and links its files under the name of every patient. Then it runs `acquire`
for each number of patients. The memory is that of the process and its children, sampled every
20 ms.
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
SEQUENCES = ("t1n", "t1c", "t2f", "t2w")


def make_patient(folder: Path, shape: tuple[int, ...], seed: int) -> dict[str, Path]:
    """Write one patient's files; return them by the part of the name that marks the sequence."""
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    coordinates = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.linalg.norm(coordinates, axis=0)
    files = {}
    for sequence in (*SEQUENCES, "seg"):
        texture = gaussian_filter(rng.standard_normal(shape), 2)
        values = (radius < 0.7) * (600 + 2000 * texture) + 5 * rng.standard_normal(shape)
        labels = 2 * (radius < 0.2) + (radius < 0.1)
        is_mask = sequence == "seg"
        voxels = labels.astype(np.uint8) if is_mask else values.clip(0).astype(np.int16)
        files[sequence] = folder / f"{sequence}.nii.gz"
        nibabel.save(Nifti1Image(voxels, affine), files[sequence])
    return files


def run_acquire(n_patients: int, files: dict[str, Path], scratch: Path) -> dict[str, float]:
    """Run acquire for a number of patients; return its seconds and peak memory in MiB."""
    source, run = scratch / "source", scratch / "run"
    for number in range(n_patients):
        name = f"BraTS-GLI-{number:05}-000"
        (source / name).mkdir(parents=True)
        for sequence, path in files.items():
            os.link(path, source / name / f"{name}-{sequence}.nii.gz")
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
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155], help="voxels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    sizes = sorted(set(arguments.patients))
    if len(sizes) < 2:
        parser.error("--patients needs at least two different numbers")
    with tempfile.TemporaryDirectory() as scratch:
        files = make_patient(Path(scratch), tuple(arguments.shape), arguments.seed)
        costs = {size: run_acquire(size, files, Path(scratch)) for size in sizes}
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
    print("growth: exponent of the best-fitting power of the number of patients; 1 is linear")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
