"""Run trainings listed in `study/runs.yaml` and add their results to the study's tables.

    python study/run.py folds/frozen/1 folds/frozen/2     # run these trainings
    python study/run.py                                   # run all that have no results yet

Each training is a DVC experiment: it runs the committed graph up to `evaluate` in a copy of the
project. In the checkout, only the tables `study/trainings.csv`, `patients.csv` and
`definitions.csv` change. With Ray (`requirements-cluster.txt`), as many trainings run at once as
there are cores or GPUs for, on this machine or on the cluster at `--address`. Without Ray, they run
one after another. To resume an interrupted study, run the same command again. See docs/cluster.md.
"""

import argparse
import configparser
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import pandas as pd  # noqa: E402

from comparison.study_tables import COST, Study, add_training, read_text, training_rows  # noqa: E402
from pipeline import cluster  # noqa: E402
from pipeline.exits import exit_with_message  # noqa: E402
from pipeline.params import leaves  # noqa: E402
from pipeline.refusals import Refusal, refuse  # noqa: E402
from progress import Progress  # noqa: E402
from task import Source, has_inputs, train  # noqa: E402

DVC = (sys.executable, "-m", "dvc")
RUNS = ROOT / "study/runs.yaml"
LOGS = ROOT / "study/logs"
TABLES = [ROOT / f"study/{name}.csv" for name in Study._fields]
STAGES = ("split", "train", "predict", "evaluate")  # the stages that a training runs
RESULTS = (  # files of an experiment that contain the results
    "params.yaml",
    "metrics/evaluate.json",
    "metrics/evaluate/definitions.csv",
    "metrics/evaluate/per_patient.csv",
    "metrics/train/metrics.json",
)
# Pairs of an experiment and the dictionary that `train` returned, in order of completion.
Completions = Generator[tuple[str, dict[str, Any]], None, None]


class Options(NamedTuple):
    """Options of the command line."""

    names: list[str]
    address: str | None
    cpus: float | None  # per training
    gpus: float | None  # per training


def experiment_name(training: str) -> str:
    """Return the name of a training's DVC experiment."""
    return "study-" + training.replace("/", "-")


def param_overrides(params: dict[str, Any]) -> list[str]:
    """Return params as a list of `name=value`, the format of `dvc exp run --set-param`."""
    return [f"{name}={json.dumps(value)}" for name, value in leaves(params)]


def cost(lines: list[tuple[float, str]]) -> dict[str, float | str]:
    """Return the duration of the train stage (min), its median throughput (images/s) and device.

    `lines` are pairs of time (s) and line of DVC's output. The result is empty if DVC already had
    the model or the training was resumed.
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
    """Run a command in the project's root and return its output; raise an error if it fails."""
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if code := completed.returncode:
        reason = completed.stderr.strip()
        raise Refusal(f"`{' '.join(command)}` failed with exit code {code}: {reason}")
    return completed.stdout.strip()


def check_committed() -> None:
    """Raise an error if a file differs from the last commit, except the study's tables."""
    changed = output_of("git", "diff", "--name-only", "-z", "HEAD").split("\0")
    prefix = output_of("git", "rev-parse", "--show-prefix")
    tables = {prefix + path.relative_to(ROOT).as_posix() for path in TABLES}
    if problems := sorted(set(changed) - tables - {""}):
        refuse(
            [f"{path}: differs from the last commit" for path in problems],
            "Trainings run the last commit. First `git commit` or `git restore` these files.",
        )


def recorded_inputs() -> dict[str, str]:
    """Return the outputs of earlier stages that trainings read, with their paths in a cache."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    read = {path for stage in STAGES for path in stages[stage]["deps"]}
    inputs = {
        path
        for name, stage in stages.items()
        if name not in STAGES
        for path in stage.get("outs", [])
        if isinstance(path, str) and path in read  # others have `cache: false` and are in Git
    }
    digests = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}
    if missing := sorted(inputs - digests.keys()):
        refuse(
            [f"dvc.lock does not record {path}" for path in missing],
            "Run `dvc repro split measure_tissue fetch_encoder` to create the inputs of trainings, "
            "then commit dvc.lock.",
        )
    return {path: f"files/md5/{digests[path][:2]}/{digests[path][2:]}" for path in sorted(inputs)}


def packed_commit() -> bytes:
    """Return a tar archive of a Git repository that contains only the last commit."""
    buffer, root = io.BytesIO(), Path(output_of("git", "rev-parse", "--show-toplevel"))
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "--quiet", "--depth=1", "--no-checkout", root.as_uri(), folder]
        output_of(*clone)
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(folder, arcname=".")
    return buffer.getvalue()


def local_config() -> str:
    """Return .dvc/config.local for copies: the local settings, with full paths of remotes.

    The settings of the cache are left out.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / ".dvc/config.local", encoding="utf-8")
    config.remove_section("cache")
    settings = output_of(*DVC, "config", "--list")  # `dvc remote list` breaks long lines
    for name, url in re.findall(r"^remote\.(.+)\.url=(.+)$", settings, re.MULTILINE):
        section = f"'remote \"{name}\"'"
        if not config.has_section(section):
            config.add_section(section)
        config[section]["url"] = url
    text = io.StringIO()
    config.write(text)
    return text.getvalue()


def make_source(marker: Path) -> Source:
    """Return the source of the project's copies; `marker` is a file in the cache."""
    return Source(
        packed_commit(),
        output_of("git", "rev-parse", "--show-prefix"),
        local_config(),
        str(ROOT / ".dvc"),
        str(marker.parent),
        marker.name,
        list(recorded_inputs().values()),
    )


def check_remote_inputs(machines: list[str]) -> None:
    """Raise an error if machines have to pull inputs that the remote does not have."""
    status = json.loads(output_of(*DVC, "status", "--cloud", "--json", *recorded_inputs()))
    missing = sorted(path for path, state in status.items() if state in ("new", "missing"))
    if missing:
        refuse(
            missing,
            "These inputs of trainings are missing in the DVC remote, from which they would be "
            f"pulled on {', '.join(machines)}. Run `dvc push`; if this checkout does not have them "
            "either, run `dvc repro split measure_tissue fetch_encoder` first.",
        )


def save(name: str, result: dict[str, Any]) -> None:
    """Save a training's experiment in Git and its rows in the tables: in all of them or in none."""
    experiment = experiment_name(name)
    find = ("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}")
    if output_of(*find):
        output_of(*DVC, "exp", "remove", "--quiet", experiment)
    prefix = output_of("git", "rev-parse", "--show-prefix")
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "experiment.bundle"
        bundle.write_bytes(result["experiment"])
        output_of("git", "fetch", "--quiet", str(bundle), "refs/exps/*:refs/exps/*")
        ref = output_of(*find)
        for path in RESULTS:
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(output_of("git", "show", f"{ref}:{prefix}{path}") + "\n", "utf-8")
        rows = training_rows(name, Path(folder), cost(result["lines"]))
    if not rows[0]["minutes"].iloc[0]:
        rows[0] = rows[0].assign(**recorded_cost(rows[0]))
    add_training(TABLES, rows)


def recorded_cost(row: pd.DataFrame) -> dict[str, float | str]:
    """Return the cost recorded for a training if its other columns match `row`, or nothing."""
    if not TABLES[0].exists():
        return {}
    table = read_text(TABLES[0], *COST)
    same = table.drop(columns=COST).merge(row.drop(columns=COST))
    found = table[table["training"].isin(same["training"])]
    return dict(found.iloc[0][COST]) if len(found) else {}


def run_sequentially(
    trainings: dict[str, list[str]], source: Source, progress: Progress
) -> Completions:
    """Run trainings on this machine, one after another; yield each when it completes."""
    if not has_inputs(source.cache, source.marker, source.inputs):
        check_remote_inputs(["this machine"])
    for training in trainings.items():
        try:
            yield training[0], train(training, source, progress.report, None)
        except (OSError, subprocess.SubprocessError) as error:
            yield training[0], {"error": str(error)}


def run_on_cluster(
    trainings: dict[str, list[str]], source: Source, progress: Progress, options: Options
) -> Completions:
    """Run trainings on the Ray cluster, several at once; yield each when it completes."""
    cluster.pickle_by_value(sys.modules[train.__module__])
    resources = cluster.resources_per_item(options.cpus, options.gpus)
    print(
        f"trainings: {len(trainings)}, machines: {len(cluster.machines())}, cores per training: "
        f"{resources.cpus:g}, GPUs per training: {resources.gpus:g}",
        flush=True,
    )
    have_inputs = cluster.run_on_each_machine(
        has_inputs, source.cache, source.marker, source.inputs
    )
    if need_pull := [machine for machine, is_complete in have_inputs if not is_complete]:
        check_remote_inputs(need_pull)
    queue = cluster.MessageQueue()

    def work(training: tuple[str, list[str]], source: Source, actor: Any) -> dict[str, Any]:
        return train(training, source, actor.put.remote, max(1, int(resources.cpus)))

    def report_messages() -> None:
        for message in queue.take():
            progress.report(message)

    shared = cluster.broadcast(source), queue.actor
    for (experiment, _), outcome in cluster.outcomes(
        work, trainings.items(), *shared, resources=resources, on_poll=report_messages
    ):
        report_messages()
        yield experiment, outcome.result or {"error": outcome.error}


def run(options: Options, runs: dict[str, dict[str, Any]]) -> list[str]:
    """Run trainings and save their results; return a message for each that failed."""
    check_committed()
    names = {experiment_name(name): name for name in options.names}
    trainings = {experiment: param_overrides(runs[name]) for experiment, name in names.items()}
    failed = []
    with ExitStack() as stack:
        cache = Path(output_of(*DVC, "cache", "dir"))
        source = make_source(stack.enter_context(cluster.marker_file(cache)))
        progress = stack.enter_context(Progress(names, LOGS))
        needs_ray = (options.address, options.cpus, options.gpus) != (None, None, None)
        if cluster.is_installed() or needs_ray:
            stack.enter_context(cluster.connect(options.address))
            completed = run_on_cluster(trainings, source, progress, options)
        else:
            completed = run_sequentially(trainings, source, progress)
        stack.callback(completed.close)
        for experiment, result in completed:
            name, error = names[experiment], result["error"]
            if not error:
                try:
                    save(name, result)
                except Exception as reason:  # any error; the other trainings continue
                    error = f"its result could not be saved: {reason}"
            if error:
                failed.append(f"{name}: {error}\n  see {progress.log_file(experiment)}")
            progress.end(experiment, "failed" if error else "done")
    return failed


def amount(text: str) -> float:
    """Return a number of cores or GPUs from the command line: a positive integer, or below 1."""
    value = float(text)
    if not (0 < value < 1 or (value >= 1 and value.is_integer())):
        raise argparse.ArgumentTypeError("must be a whole number, or between 0 and 1")
    return value


def read_options(runs: dict[str, dict[str, Any]]) -> Options:
    """Parse the command line; without names, select all trainings that have no results yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a training; default: all without results"
    )
    parser.add_argument(
        "--address", help="address of a running Ray cluster; default: start Ray on this machine"
    )
    parser.add_argument(
        "--cpus-per-training",
        type=amount,
        metavar="N",
        help="CPU cores; default: 1, or a GPU's share of the machine's cores",
    )
    parser.add_argument(
        "--gpus-per-training",
        type=amount,
        metavar="N",
        help="GPUs, or a fraction: 0.25 runs four trainings per GPU; default: 1 if there is a GPU",
    )
    arguments = parser.parse_args()
    done = set(read_text(TABLES[0])["training"]) if TABLES[0].exists() else set()
    names = arguments.names or [name for name in runs if name not in done]
    unknown = [name for name in names if name not in runs]
    if unknown:
        parser.error(f"{RUNS} does not list {', '.join(unknown)}; it lists {', '.join(runs)}")
    return Options(
        names, arguments.address, arguments.cpus_per_training, arguments.gpus_per_training
    )


def main() -> None:
    """Run the selected trainings; exit with code 1 if one failed."""
    runs: dict[str, dict[str, Any]] = yaml.safe_load(RUNS.read_text())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as after Ctrl-C
    with exit_with_message("study/run.py"):
        options = read_options(runs)
        failed = run(options, runs) if options.names else []
        if failed:
            refuse(failed, f"{len(failed)} of {len(options.names)} trainings failed")


if __name__ == "__main__":
    main()
