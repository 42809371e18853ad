"""Run trainings of the study that `study/runs.yaml` lists, and keep their tables.

    python study/run.py folds/frozen/1 folds/frozen/2     # these
    python study/run.py                                   # all that study/runs/ does not have yet

Each is a DVC experiment of the graph as far as `evaluate`, run aside: the checkout stays as it was
but for `study/runs/<name>/`, which gets its params, scores, tables and cost. A training that was
interrupted goes on where it was when the same command is given again.
"""

import argparse
import filecmp
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from pipeline.dotted import leaves  # noqa: E402

DVC = (sys.executable, "-m", "dvc")
RUNS, KEPT = ROOT / "study/runs.yaml", ROOT / "study/runs"
TABLES = {  # what is kept of an experiment, and its name there
    "params.yaml": "params.yaml",
    "metrics/evaluate.json": "evaluate.json",
    "metrics/evaluate/definitions.csv": "definitions.csv",
    "metrics/evaluate/per_patient.csv": "per_patient.csv",
    "metrics/train/metrics.json": "train.json",
    "metrics/train/plots/metrics/train/loss.tsv": "train_loss.tsv",
    "metrics/train/plots/metrics/train/iou.tsv": "train_iou.tsv",
    "metrics/train/plots/metrics/val/iou.tsv": "val_iou.tsv",
}


def overrides_of(wanted: dict[str, Any]) -> list[str]:
    """Return `name=value` of each value, as `dvc exp run --set-param` takes it."""
    return [f"{name}={json.dumps(value)}" for name, value in leaves(wanted)]


def cost(lines: list[tuple[float, str]]) -> dict[str, float | int | str]:
    """Return minutes of the train stage, its epochs, the median of their images/s and the device.

    `lines` are those that DVC has printed, each with the second at which it came. Empty where
    nothing was trained, for DVC had the model already, or it was resumed.
    """
    begin = next((i for i, (_, line) in enumerate(lines) if "Running stage 'train'" in line), None)
    if begin is None or any("resumed at epoch" in line for _, line in lines):
        return {}
    rates = [float(m[1]) for _, line in lines if (m := re.search(r"([\d.]+) images/s$", line))]
    [device] = [m[1] for _, line in lines if (m := re.search(r" (\d+ × \w+ in [\w-]+)$", line))]
    end = next(i for i, (_, line) in enumerate(lines) if i > begin and "Updating lock" in line)
    return {
        "minutes": round((lines[end][0] - lines[begin][0]) / 60, 1),
        "epochs": len(rates),
        "images_per_s": round(statistics.median(rates), 1),
        "device": device,
    }


def output_of(*command: str) -> str:
    """Return what a command prints in the root of the project; end with its error if it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {done.returncode}; it says why above")
    return done.stdout.strip()


def check_letters() -> None:
    """Refuse to begin where `dvc exp run --temp` fails: it writes two files in ASCII."""
    cache = output_of(*DVC, "cache", "dir")
    config = ROOT / output_of("git", "rev-parse", "--git-path", "config")
    if not cache.isascii():
        sys.exit(
            f"DVC's cache is in {cache}, and `dvc exp run --temp` fails in a path with "
            "non-ASCII characters. Clone the project elsewhere, or move the cache: "
            "`dvc config --local cache.dir /srv/dvc-cache`."
        )
    if not config.read_bytes().isascii():
        sys.exit(
            f"{config} has non-ASCII characters, with which `dvc exp run --temp` fails. Move "
            'that line into your own settings, such as `git config --global user.name "…"`.'
        )


def run(name: str, wanted: dict[str, Any]) -> None:
    """Run one experiment and keep its tables; all of them or none."""
    experiment = "study-" + name.replace("/", "-")
    known = output_of(*DVC, "exp", "list", "--all-commits", "--name-only")
    if experiment in known.split():
        output_of(*DVC, "exp", "remove", "--quiet", experiment)
    command = [*DVC, "exp", "run", "--temp", "--name", experiment, "evaluate"]
    command += [f"--set-param={override}" for override in overrides_of(wanted)]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or []:
            print(line, end="", flush=True)
            lines.append((time.monotonic(), line.rstrip()))
    if running.returncode:
        sys.exit(f"{name}: dvc exp run ended with {running.returncode}; see above")
    with tempfile.TemporaryDirectory(dir=KEPT.parent, prefix=".") as folder:
        kept = Path(folder) / "kept"
        kept.mkdir()
        below_git_root = output_of("git", "rev-parse", "--show-prefix")
        for path, target in TABLES.items():
            source = ["--rev", experiment, ".", below_git_root + path]
            output_of(*DVC, "get", *source, "--out", str(kept / target))
        found = cost(lines)
        same = ["params.yaml", "train.json"]
        if not found and filecmp.cmpfiles(KEPT / name, kept, same, shallow=False)[0] == same:
            found = json.loads((KEPT / name / "cost.json").read_text())
        (kept / "cost.json").write_text(json.dumps(found, indent=2) + "\n")
        shutil.rmtree(KEPT / name, ignore_errors=True)
        (KEPT / name).parent.mkdir(parents=True, exist_ok=True)
        kept.rename(KEPT / name)


def main() -> None:
    """Run the named ones, or those that are lacking."""
    runs: dict[str, dict[str, Any]] = yaml.safe_load(RUNS.read_text())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or [name for name in runs if not (KEPT / name).exists()]
    unknown = [name for name in names if name not in runs]
    if unknown:
        parser.error(f"{RUNS} has no {', '.join(unknown)}, but {', '.join(runs)}")
    if names:
        check_letters()
    for name in names:
        run(name, runs[name])


if __name__ == "__main__":
    main()
