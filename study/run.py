"""Run trainings of the study that `study/runs.yaml` lists, and keep their tables.

    python study/run.py folds/frozen/1 folds/frozen/2     # these
    python study/run.py                                   # all that have no row yet

Each is a DVC experiment of the graph as far as `evaluate`, run aside: the checkout stays as it was
but for the tables `study/trainings.csv`, `patients.csv` and `definitions.csv`, which get its rows.
A training that was interrupted goes on where it was when the same command is given again.
"""

import argparse
import json
import re
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

import pandas as pd  # noqa: E402

from comparison.study_tables import COST, Study, add_training, read_text, training_rows  # noqa: E402
from pipeline.params import leaves  # noqa: E402
from pipeline.refusals import Refusal  # noqa: E402

DVC = (sys.executable, "-m", "dvc")
RUNS = ROOT / "study/runs.yaml"
TABLES = [ROOT / f"study/{name}.csv" for name in Study._fields]
RESULTS = (  # of an experiment, that rows are made of
    "params.yaml",
    "metrics/evaluate.json",
    "metrics/evaluate/definitions.csv",
    "metrics/evaluate/per_patient.csv",
    "metrics/train/metrics.json",
)


def overrides_of(wanted: dict[str, Any]) -> list[str]:
    """Return `name=value` of each value, as `dvc exp run --set-param` takes it."""
    return [f"{name}={json.dumps(value)}" for name, value in leaves(wanted)]


def cost(lines: list[tuple[float, str]]) -> dict[str, float | str]:
    """Return minutes of the train stage, the median of its epochs' images/s, and the device.

    `lines` are those that DVC has printed, each with the second at which it came. Empty where
    nothing was trained, for DVC had the model already, or it was resumed.
    """
    begin = next((i for i, (_, line) in enumerate(lines) if "Running stage 'train'" in line), None)
    if begin is None or any("resumed at epoch" in line for _, line in lines):
        return {}
    rates = [float(m[1]) for _, line in lines if (m := re.search(r"([\d.]+) images/s$", line))]
    [device] = [m[1] for _, line in lines if (m := re.search(r"on (\d+ × .+ in [\w-]+)$", line))]
    end = next(i for i, (_, line) in enumerate(lines) if i > begin and "Updating lock" in line)
    return {
        "minutes": round((lines[end][0] - lines[begin][0]) / 60, 1),
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


def kept_cost(row: pd.DataFrame) -> dict[str, float | str]:
    """Return the cost that a training's row has already, if the same training is in it."""
    if not TABLES[0].exists():
        return {}
    table = read_text(TABLES[0], *COST)
    same = table.drop(columns=COST).merge(row.drop(columns=COST))
    found = table[table["training"].isin(same["training"])]
    return dict(found.iloc[0][COST]) if len(found) else {}


def run(name: str, wanted: dict[str, Any]) -> None:
    """Run one experiment and keep its rows; in all tables or in none."""
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
    below_git_root = output_of("git", "rev-parse", "--show-prefix")
    with tempfile.TemporaryDirectory() as folder:
        for path in RESULTS:
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            source = ["--rev", experiment, ".", below_git_root + path]
            output_of(*DVC, "get", *source, "--out", str(target))
        rows = training_rows(name, Path(folder), cost(lines))
    if not rows[0]["minutes"].iloc[0]:
        rows[0] = rows[0].assign(**kept_cost(rows[0]))
    add_training(TABLES, rows)


def main() -> None:
    """Run the named ones, or those that have no row."""
    runs: dict[str, dict[str, Any]] = yaml.safe_load(RUNS.read_text())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    asked = parser.parse_args().names
    done = set(read_text(TABLES[0])["training"]) if TABLES[0].exists() else set()
    names = asked or [name for name in runs if name not in done]
    unknown = [name for name in names if name not in runs]
    if unknown:
        parser.error(f"{RUNS} has no {', '.join(unknown)}, but {', '.join(runs)}")
    if names:
        check_letters()
    for name in names:
        run(name, runs[name])


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        sys.exit(str(refusal))
