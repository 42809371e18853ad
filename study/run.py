"""Run trainings of the study that `study/runs.yaml` lists, and keep their tables.

    python study/run.py folds/frozen/1 folds/frozen/2     # these
    python study/run.py                                   # all that have no row yet

Each is a DVC experiment of the committed graph as far as `evaluate`, run in a copy: the checkout
stays as it was but for the tables `study/trainings.csv`, `patients.csv` and `definitions.csv`,
which get its rows. With Ray (`requirements-cluster.txt`) as many run at once as there are cores or
GPUs for, here or on the cluster at `--address`; without it, one after another. What was interrupted
goes on where it was when the same command is given again. docs/cluster.md says more.
"""

import argparse
import configparser
import io
import json
import re
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
from pipeline.exits import ending  # noqa: E402
from pipeline.params import leaves  # noqa: E402
from pipeline.refusals import Refusal, refuse  # noqa: E402
from progress import Progress  # noqa: E402
from task import Source, has_inputs, train  # noqa: E402

DVC = (sys.executable, "-m", "dvc")
RUNS = ROOT / "study/runs.yaml"
LOGS = ROOT / "study/logs"
TABLES = [ROOT / f"study/{name}.csv" for name in Study._fields]
STAGES = ("split", "train", "predict", "evaluate")  # that trainings differ in
RESULTS = (  # of an experiment, that rows are made of
    "params.yaml",
    "metrics/evaluate.json",
    "metrics/evaluate/definitions.csv",
    "metrics/evaluate/per_patient.csv",
    "metrics/train/metrics.json",
)


Endings = Generator[tuple[str, dict[str, Any]], None, None]  # experiments, and what train returned


class Options(NamedTuple):
    """What the command line asks for."""

    names: list[str]
    address: str | None
    cpus: float | None  # of each training
    gpus: float | None


def experiment_of(name: str) -> str:
    """Return the name of a training's experiment."""
    return "study-" + name.replace("/", "-")


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
    """Return what a command prints in the root of the project; refuse to go on if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def refuse_changes() -> None:
    """Refuse files that differ from the last commit, but for the tables, which get rows."""
    changed = output_of("git", "diff", "--name-only", "-z", "HEAD").split("\0")
    prefix = output_of("git", "rev-parse", "--show-prefix")
    own = {prefix + path.relative_to(ROOT).as_posix() for path in TABLES}
    if problems := sorted(set(changed) - own - {""}):
        refuse(
            [f"{path}: differs from the last commit" for path in problems],
            "A training is of a commit: `git commit` or `git restore` these first.",
        )


def recorded_inputs() -> dict[str, str]:
    """Return the outputs of earlier stages that trainings read, and where each is in a cache."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    read = {path for stage in STAGES for path in stages[stage]["deps"]}
    wanted = {
        path
        for name, stage in stages.items()
        if name not in STAGES
        for path in stage.get("outs", [])
        if isinstance(path, str) and path in read  # others are in Git
    }
    digests = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}
    if lacking := sorted(wanted - digests.keys()):
        refuse(
            [f"dvc.lock does not record {path}" for path in lacking],
            "`dvc repro split fetch_encoder` makes what trainings read; commit dvc.lock then.",
        )
    return {path: f"files/md5/{digests[path][:2]}/{digests[path][2:]}" for path in sorted(wanted)}


def packed_commit() -> bytes:
    """Return the last commit as a Git repository of its own, in a tar archive."""
    buffer, root = io.BytesIO(), Path(output_of("git", "rev-parse", "--show-toplevel"))
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "--quiet", "--depth=1", "--no-checkout", root.as_uri(), folder]
        output_of(*clone)
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(folder, arcname=".")
    return buffer.getvalue()


def local_config() -> str:
    """Return .dvc/config.local for a copy elsewhere: what is set here, and remotes' full paths.

    Where the cache is, is not part of it.
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


def make_source(mark: Path) -> Source:
    """Return what the copies of the project are made from; `mark` is a file in the cache."""
    return Source(
        packed_commit(),
        output_of("git", "rev-parse", "--show-prefix"),
        local_config(),
        str(ROOT / ".dvc"),
        str(mark.parent),
        mark.name,
        list(recorded_inputs().values()),
    )


def refuse_lacking_inputs(machines: list[str]) -> None:
    """Refuse to begin where the remote lacks what machines without this cache have to pull."""
    status = json.loads(output_of(*DVC, "status", "--cloud", "--json", *recorded_inputs()))
    lacking = sorted(path for path, state in status.items() if state in ("new", "missing"))
    if lacking:
        refuse(
            lacking,
            f"The remote lacks these, which trainings read, and {', '.join(machines)} has no other "
            "way to get them: `dvc push`, or where this checkout lacks them too, first "
            "`dvc repro split fetch_encoder`.",
        )


def keep(name: str, done: dict[str, Any]) -> None:
    """Keep what a training has come to: its experiment, and its rows in all tables or in none."""
    experiment = experiment_of(name)
    find = ("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}")
    if output_of(*find):
        output_of(*DVC, "exp", "remove", "--quiet", experiment)
    prefix = output_of("git", "rev-parse", "--show-prefix")
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "experiment.bundle"
        bundle.write_bytes(done["experiment"])
        output_of("git", "fetch", "--quiet", str(bundle), "refs/exps/*:refs/exps/*")
        ref = output_of(*find)
        for path in RESULTS:
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(output_of("git", "show", f"{ref}:{prefix}{path}") + "\n", "utf-8")
        rows = training_rows(name, Path(folder), cost(done["lines"]))
    if not rows[0]["minutes"].iloc[0]:
        rows[0] = rows[0].assign(**kept_cost(rows[0]))
    add_training(TABLES, rows)


def kept_cost(row: pd.DataFrame) -> dict[str, float | str]:
    """Return the cost that a training's row has already, if the same training is in it."""
    if not TABLES[0].exists():
        return {}
    table = read_text(TABLES[0], *COST)
    same = table.drop(columns=COST).merge(row.drop(columns=COST))
    found = table[table["training"].isin(same["training"])]
    return dict(found.iloc[0][COST]) if len(found) else {}


def one_after_another(items: dict[str, list[str]], source: Source, progress: Progress) -> Endings:
    """Yield each experiment with what `train` returned, in turn."""
    if not has_inputs(source.cache, source.mark, source.inputs):
        refuse_lacking_inputs(["this machine"])
    for item in items.items():
        try:
            yield item[0], train(item, source, progress.tell, None)
        except (OSError, subprocess.SubprocessError) as error:
            yield item[0], {"error": str(error)}


def at_once(
    items: dict[str, list[str]], source: Source, progress: Progress, options: Options
) -> Endings:
    """Yield each experiment with what `train` returned on a machine of the cluster, as they end."""
    cluster.ship(sys.modules[train.__module__])
    share = cluster.usual_share(options.cpus, options.gpus)
    print(
        f"trainings: {len(items)}, machines: {len(cluster.machines())}; each training gets "
        f"CPU cores: {share.cpus:g}, GPUs: {share.gpus:g}",
        flush=True,
    )
    reached = cluster.on_each_machine(has_inputs, source.cache, source.mark, source.inputs)
    if lacking := [machine for machine, reaches in reached if not reaches]:
        refuse_lacking_inputs(lacking)
    listener = cluster.Listener()

    def work(item: tuple[str, list[str]], source: Source, actor: Any) -> dict[str, Any]:
        return train(item, source, actor.tell.remote, max(1, int(share.cpus)))

    def listen() -> None:
        for report in listener.take():
            progress.tell(report)

    common = cluster.common(source), listener.actor
    for (experiment, _), outcome in cluster.outcomes(
        work, items.items(), *common, share=share, meanwhile=listen
    ):
        listen()
        yield experiment, outcome.result or {"error": outcome.error}


def run(options: Options, runs: dict[str, dict[str, Any]]) -> list[str]:
    """Run trainings and keep what they come to; return a message for each that failed."""
    refuse_changes()
    names = {experiment_of(name): name for name in options.names}
    items = {experiment: overrides_of(runs[name]) for experiment, name in names.items()}
    failed = []
    with ExitStack() as stack:
        cache = Path(output_of(*DVC, "cache", "dir"))
        source = make_source(stack.enter_context(cluster.marked(cache)))
        progress = stack.enter_context(Progress(names, LOGS))
        wants_ray = (options.address, options.cpus, options.gpus) != (None, None, None)
        if cluster.is_installed() or wants_ray:
            stack.enter_context(cluster.joined(options.address))
            ended = at_once(items, source, progress, options)
        else:
            ended = one_after_another(items, source, progress)
        stack.callback(ended.close)
        for experiment, done in ended:
            name, error = names[experiment], done["error"]
            if not error:
                try:
                    keep(name, done)
                except Exception as reason:  # whatever it is, it stops no other training
                    error = f"its result could not be kept: {reason}"
            if error:
                failed.append(f"{name}: {error}\n  see {progress.log_of(experiment)}")
            progress.end(experiment, "failed" if error else "done")
    return failed


def amount(text: str) -> float:
    """Return a whole number above 0, or a fraction of 1, for argparse."""
    value = float(text)
    if not (0 < value < 1 or (value >= 1 and value.is_integer())):
        raise argparse.ArgumentTypeError("must be a whole number, or between 0 and 1")
    return value


def read_options(runs: dict[str, dict[str, Any]]) -> Options:
    """Return what the command line asks for: trainings by name, or those that have no row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--address", help="of a running Ray cluster; else Ray is started here")
    parser.add_argument("--cpus-per-training", type=amount, metavar="N", help="cores, by default 1")
    parser.add_argument(
        "--gpus-per-training",
        type=amount,
        metavar="N",
        help="GPUs, 0.25 for four trainings on each; by default 1 where there are any",
    )
    asked = parser.parse_args()
    done = set(read_text(TABLES[0])["training"]) if TABLES[0].exists() else set()
    names = asked.names or [name for name in runs if name not in done]
    unknown = [name for name in names if name not in runs]
    if unknown:
        parser.error(f"{RUNS} has no {', '.join(unknown)}, but {', '.join(runs)}")
    return Options(names, asked.address, asked.cpus_per_training, asked.gpus_per_training)


def main() -> None:
    """Run what the command line names; exit with 1 if a training failed."""
    runs: dict[str, dict[str, Any]] = yaml.safe_load(RUNS.read_text())
    with ending("study/run.py"):
        options = read_options(runs)
        failed = run(options, runs) if options.names else []
        if failed:
            refuse(failed, f"{len(failed)} of {len(options.names)} trainings failed")


if __name__ == "__main__":
    main()
