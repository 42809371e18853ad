"""Time and memory of the data stages for growing numbers of patients, and of a no-op repro.

    python benchmarks/data_stages.py --patients 110 330 1100

The benchmark writes phantom patients of 128 px to a folder, and runs each stage on it with the
command that `dvc repro` uses. The memory of a stage is that of its process and its children,
sampled every 20 ms. Finally, the whole graph runs once with the smallest number of patients, and
`dvc repro` with nothing to do is timed alternately with `dvc status`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from measure import growth, run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
from scans.phantom import write_phantom

TO_SPLIT = ("acquire", "restructure", "build_manifest", "split")
STAGES = (*TO_SPLIT, "explore")
# Overrides that keep the training in the whole graph as short as possible.
QUICK = ("encoder.weights=none", "encoder.frozen=false", "train.epochs=1", "train.image_size=32")


def make_clone(folder: Path, archive: Path) -> Path:
    """Copy the working tree to `folder`, as a Git and DVC repository that acquires `archive`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for override in (f"acquire.dataset={archive}", *QUICK):
        name, _, value = override.partition("=")
        section, key = name.split(".")
        params[section][key] = yaml.safe_load(value)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=b", "-c", "user.email=b", "commit", "-q", "-m", "benchmark"],
    ):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def stage_costs(clone: Path) -> dict[str, dict[str, float]]:
    """Run the data stages one after another; return the seconds and peak MiB of each."""
    graph = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
    costs = {}
    for stage in STAGES:
        _, *arguments = graph[stage]["cmd"].split()
        seconds, occupied = run_command([sys.executable, *arguments], str(clone))
        costs[stage] = {"seconds": seconds, "memory_mib": occupied / 2**20}
    costs["to_split"] = {
        "seconds": sum(costs[stage]["seconds"] for stage in TO_SPLIT),
        "memory_mib": max(costs[stage]["memory_mib"] for stage in TO_SPLIT),
    }
    return costs


def time_no_op(clone: Path, repeats: int) -> dict[str, Any]:
    """Return the seconds of `dvc status` and `dvc repro` when everything is up to date."""
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "repro", "--quiet"], cwd=clone, check=True)
    times: dict[str, list[float]] = {"status": [], "repro": []}
    for _ in range(repeats):
        for command, seconds in times.items():
            begin = time.perf_counter()
            done = subprocess.run(
                [*dvc, command], cwd=clone, check=True, capture_output=True, text=True
            )
            seconds.append(time.perf_counter() - begin)
            if "up to date" not in done.stdout:
                raise RuntimeError(f"dvc {command} had work to do:\n{done.stdout}")
    ratios = [repro / status for status, repro in zip(times["status"], times["repro"], strict=True)]
    return {
        "status_s": statistics.median(times["status"]),
        "repro_s": statistics.median(times["repro"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "repeats": repeats,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as a readable table."""
    sizes = list(result["stages"])
    first, last = sizes[0], sizes[-1]
    head = "".join(f"{size:>10}" for size in sizes)
    lines = [f"{'seconds, patients:':20}{head}{'growth':>10}{f'{last}/{first}':>12}"]
    for key, title in (("seconds", ""), ("memory_mib", "peak memory, MiB:")):
        lines += ["", title] if title else []
        for stage in result["growth"]:
            values = [result["stages"][size][stage][key] for size in sizes]
            cells = "".join(f"{value:10.{1 if key == 'seconds' else 0}f}" for value in values)
            power = f"{result['growth'][stage][key]:10.2f}"
            lines.append(f"{stage:20}{cells}{power}{values[-1] / values[0]:12.2f}")
    no_op = result["no_work"]
    lines += [
        "",
        "growth: exponent of the best-fitting power of the number of patients; 1 is linear",
        f"nothing to do: dvc status {no_op['status_s']:.2f} s, dvc repro "
        f"{no_op['repro_s']:.2f} s, ratio {no_op['ratio']:.2f} "
        f"({no_op['ratio_low']:.2f} to {no_op['ratio_high']:.2f}, n = {no_op['repeats']})",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, nargs="+", default=[110, 330, 1100])
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="runs of dvc status and repro")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    sizes = sorted(set(arguments.patients))
    if len(sizes) < 2:
        parser.error("--patients needs at least two different numbers")
    stages: dict[int, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            archive = Path(scratch) / f"archive {size}"
            write_phantom(
                archive, seed=arguments.seed, patients=size, image_size=arguments.image_size
            )
            clone = make_clone(Path(scratch) / f"clone {size}", archive)
            stages[size] = stage_costs(clone)
            if size > sizes[0]:  # time_no_op needs the first one
                shutil.rmtree(archive)
                shutil.rmtree(clone)
        no_op = time_no_op(Path(scratch) / f"clone {sizes[0]}", arguments.repeats)
    result = {
        "stages": stages,
        "growth": {
            stage: {
                key: growth(sizes, [stages[size][stage][key] for size in sizes])
                for key in ("seconds", "memory_mib")
            }
            for stage in stages[sizes[0]]
        },
        "no_work": no_op,
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
