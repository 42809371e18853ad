"""The study and a cohort of cases on Ray: locally, and on a simulated cluster of machines."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import task
from comparison.study_tables import COST, Study, read_text
from heads import ALL, make_head, write_head
from helpers import ROOT, clone_with_outputs, commit_all, dvc, dvc_environment
from pipeline import cluster
from pipeline.refusals import Refusal

TABLES = [f"study/{name}.csv" for name in Study._fields]
# Start Python as if Ray were not installed.
WITHOUT_RAY = "import runpy, sys; sys.modules['ray'] = None; sys.path.insert(0, 'study'); "
WITHOUT_RAY += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
TIMEOUT = 240  # seconds for a study of these tests, even on a busy machine


def fold(number: int, **train: object) -> dict[str, Any]:
    """Return the params in which a training differs from params.yaml."""
    return {"split": {"test_fold": number}, "train": {"repeat": 3, **train}}


def study(folder: Path, runs: dict[str, Any]) -> Path:
    """Replace the trainings of a repository's study, remove its tables, and commit."""
    (folder / "study/runs.yaml").write_text(yaml.safe_dump(runs))
    for table in TABLES:
        (folder / table).unlink()
    commit_all(folder)
    return folder


def command(*arguments: str, ray: bool = True) -> list[str]:
    """Return the command that runs a study."""
    start = [] if ray else ["-c", WITHOUT_RAY]
    return [sys.executable, *start, "study/run.py", *arguments]


def run(folder: Path, *arguments: str, ray: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a study and wait until it ends."""
    return subprocess.run(
        command(*arguments, ray=ray), cwd=folder, env=dvc_environment(), capture_output=True,
        text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], running: subprocess.Popen[Any]) -> None:
    """Wait until a condition is true; fail if the process ends first."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert running.poll() is None, "the process ended first"
        assert time.monotonic() < end
        time.sleep(0.2)


def tables_of(folder: Path) -> list[Any]:
    """Return the tables of a study without the columns of cost."""
    texts = [read_text(folder / path) for path in TABLES]
    return [texts[0].drop(columns=COST).to_csv(), *(text.to_csv() for text in texts[1:])]


def log(folder: Path, name: str) -> str:
    """Return the current log of a training, or "" if there is none."""
    path = folder / f"study/logs/{name.replace('/', '-')}.log"
    return path.read_text() if path.exists() else ""


@pytest.fixture
def machines() -> Iterator[Any]:
    """Yield a cluster of three machines with one core each; a test may remove the two workers."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    made.workers = [made.add_node(num_cpus=1, num_gpus=0) for _ in range(2)]
    yield made
    made.shutdown()


def test_three_machines_give_the_same_tables_as_one_even_if_a_machine_is_lost(
    committed_run: Path, machines: Any, tmp_path: Path
) -> None:
    runs = {f"tiny/fold/{n}": fold(n, epochs=8) for n in range(3)}
    local = study(clone_with_outputs(committed_run, tmp_path / "local"), runs)
    done = run(local, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr

    shared = study(clone_with_outputs(committed_run, tmp_path / "shared"), runs)
    with subprocess.Popen(
        command("--address", machines.address), cwd=shared, env=dvc_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as running:  # fmt: skip
        wait_for(lambda: all("epoch 1/8" in log(shared, name) for name in runs), running)
        machines.remove_node(machines.workers[0], allow_graceful=False)
        output, _ = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 0, output
    assert sum(log(shared, name).count("resumed at epoch") for name in runs) == 1
    assert tables_of(shared) == tables_of(local)
    listed = dvc(shared, "exp", "list", "--name-only").stdout.split()
    assert set(listed) == {f"study-tiny-fold-{n}" for n in range(3)}


def test_a_study_resumes_after_ctrl_c_and_a_failed_training_stops_no_other(
    committed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {
        "tiny/quick/0": fold(0),
        "tiny/long/1": fold(1, epochs=40),
        "tiny/bad/2": fold(2, learning_rate=1e20),
    }
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), runs)
    table, scratch = folder / TABLES[0], tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with subprocess.Popen(
        command("tiny/quick/0", "tiny/long/1", "--cpus-per-training", "1"),
        cwd=folder, env=dvc_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        wait_for(lambda: "epoch 2/40" in log(folder, "tiny/long/1") and table.exists(), running)
        family = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    assert "interrupted" in error.rstrip().splitlines()[-1]
    _, alive = psutil.wait_procs(family, timeout=TIMEOUT)
    assert not alive
    assert list(read_text(table)["training"]) == ["tiny/quick/0"]
    before = (folder / TABLES[1]).read_text()

    done = run(folder)
    assert done.returncode == 1
    assert not list(scratch.glob("study-*"))  # the second run removed those of killed processes
    assert "tiny/quick/0" not in done.stdout
    assert "resumed at epoch" in log(folder, "tiny/long/1")
    assert "tiny/bad/2: train.py: error: " in done.stderr
    assert "epoch 1" in done.stderr
    assert "study/logs/tiny-bad-2.log" in done.stderr
    assert "1 of 2" in done.stderr.rstrip().splitlines()[-1]
    assert list(read_text(table)["training"]) == ["tiny/long/1", "tiny/quick/0"]
    assert (folder / TABLES[1]).read_text().endswith(before.partition("\n")[2])


def test_a_study_that_is_terminated_in_the_background_stops_its_trainings(
    committed_run: Path, tmp_path: Path
) -> None:
    """Like a job of a scheduler: processes in the background of a script ignore SIGINT."""
    runs = {"tiny/long/1": fold(1, epochs=400)}
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), runs)
    with subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command()],
        cwd=folder, env=dvc_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        wait_for(lambda: "epoch 2/400" in log(folder, "tiny/long/1"), running)
        family = psutil.Process(running.pid).children(recursive=True)
        assert list(tmp_path.rglob(".*.partial"))
        running.terminate()
        _, error = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    assert "interrupted" in error.rstrip().splitlines()[-1]
    assert "*** SIGTERM" not in error  # how Ray's own handler begins
    _, alive = psutil.wait_procs(family, timeout=TIMEOUT)
    assert not alive
    assert not list(tmp_path.rglob(".*.partial"))


def test_inputs_that_the_cache_lacks_are_pulled_from_the_remote(
    committed_run: Path, tmp_path: Path
) -> None:
    """The remote's path is longer than a line of the terminal, which `dvc remote list` breaks."""
    runs = {"tiny/fold/0": fold(0)}
    folder = study(clone_with_outputs(committed_run, tmp_path / ("long" * 30) / "brain"), runs)
    kept = folder.rename(folder.with_name("kept"))
    subprocess.run(["git", "clone", "--quiet", kept, folder], check=True)

    done = run(folder, ray=False)
    assert done.returncode == 1
    assert "data/intensities.csv\n" in done.stderr
    assert "missing in the DVC remote" in done.stderr
    assert "`dvc push`" in done.stderr
    assert not (folder / "study/logs").exists()

    pushed = dvc(kept, "push")
    assert pushed.returncode == 0, pushed.stderr
    done = run(folder, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [rev] = dvc(folder, "exp", "list", "--name-only").stdout.split()
    downloaded = dvc(folder, "get", ".", "models/unet.safetensors", "--rev", rev, "--out", "unet")
    assert downloaded.returncode == 0, downloaded.stderr
    assert not (folder / "data/slices").exists()


def test_uncommitted_changes_are_an_error(committed_run: Path, tmp_path: Path) -> None:
    folder = clone_with_outputs(committed_run, tmp_path / "brain")
    for path in ("params.yaml", "src/train.py"):
        with (folder / path).open("a") as file:
            file.write("# changed\n")
    done = run(folder, "folds/context/0")
    assert done.returncode == 1
    assert "error: params.yaml: differs from the last commit\n" in done.stderr
    assert "\nsrc/train.py: differs from the last commit\n" in done.stderr
    assert "`git commit` or `git restore`" in done.stderr


GPU_SHARES = """
import json, os, sys, time
sys.path.insert(0, "src")
from pipeline import cluster
def devices(number):
    time.sleep(0.2)
    return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
with cluster.connect(sys.argv[1]):
    for gpus in (None, 0.25, 0.5, 2):
        resources = cluster.resources_per_item(None, gpus)
        done = cluster.outcomes(devices, range(12), resources=resources)
        print(json.dumps([resources, [outcome.result for _, outcome in done]]))
"""


def test_a_task_sees_only_the_gpus_that_it_reserved() -> None:
    """The machine has eight cores and two GPUs, which are declared but do not exist."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 2})
    try:
        done = subprocess.run(
            [sys.executable, "-c", GPU_SHARES, made.address], cwd=ROOT, capture_output=True,
            text=True, check=False, timeout=TIMEOUT,
        )  # fmt: skip
    finally:
        made.shutdown()
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [resources for resources, _ in found] == [[4, 1], [1, 0.25], [2, 0.5], [8, 2]]
    for (_, gpus), results in found:
        assert len(results) == 12
        for devices in results:
            assert len(devices) == max(1, gpus)
            assert set(devices) <= {"0", "1"}


FAILURES = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, "src")
from pipeline import cluster
folder = Path(sys.argv[1])
def work(kind):
    tries = folder / kind
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if kind == "killed child" and tries.read_text() == "x":
        raise ChildProcessError("killed")
    if kind == "killed" and tries.read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "error":
        raise ValueError("first line\\nsecond line")
    if kind == "always killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return tries.read_text()
kinds = ["killed child", "killed", "error", "always killed", "success"]
with cluster.connect(None):
    done = dict(cluster.outcomes(work, kinds, resources=cluster.Resources(1)))
tries = len((folder / "always killed").read_text())
print(json.dumps([done, tries]))
"""


def test_killed_tasks_are_retried_and_errors_are_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILURES, str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes, n_tries = json.loads(done.stdout.splitlines()[-1])  # Ray prints lines about retries
    assert outcomes["killed child"] == ["xx", ""]
    assert outcomes["killed"] == ["xx", ""]
    assert outcomes["success"] == ["x", ""]
    assert outcomes["error"] == [None, "ValueError: first line"]
    assert "lost 4 times: " in outcomes["always killed"][1]
    assert n_tries == 4


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with study/task.py, which runs the commands of a training."""
    (tmp_path / "project/study").mkdir(parents=True)
    shutil.copy(ROOT / "study/task.py", tmp_path / "project/study")
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.kill(os.getpid(), 9)", ChildProcessError),
        ("print('ERROR: failed to run: train, exited with -9'); exit(1)", ChildProcessError),
        ("exit(3)", subprocess.CalledProcessError),
    ],
)
def test_a_killed_command_raises_another_error_than_a_failed_one(
    project: Path, code: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(task.run_command([sys.executable, "-c", code], project, project, None))


def test_a_command_ends_with_its_parent_and_its_folder_is_removed(project: Path) -> None:
    code = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '1000'])"
    folder = project / "scratch"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "study/task.py", str(folder), sys.executable, "-c", code], cwd=project,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        family = psutil.Process(running.pid).children(recursive=True)
        assert running.stdin is not None
        running.stdin.close()
        _, alive = psutil.wait_procs(family, timeout=TIMEOUT)
        assert not alive
        running.wait(TIMEOUT)
    assert not folder.exists()


@pytest.mark.parametrize("n_failures", [0, 2, 3])
def test_a_failed_push_is_retried_twice(n_failures: int) -> None:
    calls = []

    def execute(*arguments: str) -> None:
        calls.append(arguments)
        if len(calls) <= n_failures:
            raise subprocess.CalledProcessError(1, arguments)

    if n_failures < 3:
        task.push(execute)
    else:
        with pytest.raises(subprocess.CalledProcessError):
            task.push(execute)
    assert calls == [("push", task.MODEL)] * min(n_failures + 1, 3)


def test_a_shared_cache_is_recognized_by_its_marker_file(tmp_path: Path) -> None:
    """Another machine may have a different cache at the same path."""
    (tmp_path / "files").mkdir()
    with cluster.marker_file(tmp_path) as marker:
        assert task.has_inputs(str(tmp_path), marker.name, ["files"])
        assert not task.has_inputs(str(tmp_path), marker.name, ["files", "others"])
    assert not task.has_inputs(str(tmp_path), marker.name, ["files"])


def test_a_command_uses_as_many_threads_as_it_has_cores() -> None:
    code = "import sys; sys.path.insert(0, 'src'); from pipeline.parallel import n_threads; "
    code += "import torch; print(n_threads(), torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=task.environment(1), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1"]
    assert task.environment(3)["OMP_NUM_THREADS"] == "3"
    assert task.environment(None).get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def test_requesting_more_than_any_machine_has_is_an_error(
    machines: Any, committed_run: Path, tmp_path: Path
) -> None:
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), {"tiny/fold/0": fold(0)})
    done = run(folder, "--address", machines.address, "--cpus-per-training", "2")
    assert done.returncode == 1
    assert "cores: 2, GPUs: 0." in done.stderr
    assert done.stderr.count(": cores: 1, GPUs: 0") == 3


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "ray://127.0.0.1:9"])
def test_an_address_that_does_not_answer_is_an_error(address: str) -> None:
    with pytest.raises(Refusal, match=f" {address} "):
        cluster.check_reachable(address)


LISTENING = """
import json, os, sys
sys.path.insert(0, "src")
import psutil
from pipeline import cluster
with cluster.connect(None):
    list(cluster.outcomes(lambda number: -number, [1], resources=cluster.Resources(1)))
    family = psutil.Process().children(recursive=True)
    family += [p for p in psutil.process_iter() if p.ppid() in [parent.pid for parent in family]]
    open_ = [c.laddr.ip for p in {p.pid: p for p in [psutil.Process(), *family]}.values()
             for c in p.net_connections() if c.status == "LISTEN"]
print(json.dumps([open_, os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"]]))
"""


def test_a_local_ray_is_reachable_only_from_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    addresses, mode, statistics = json.loads(done.stdout)
    assert len(addresses) >= 3
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert (mode, statistics) == ("token", "0")


def test_segmenting_a_cohort_on_a_cluster_gives_the_same_results_as_locally(
    machines: Any, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "results"
    for name in "abc":
        write_head(cohort / name, make_head(seed=ord(name)), ALL)
    (cohort / "b/flair.nii.gz").write_bytes(b"no scan")

    def segment(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "src/segment.py", str(cohort), "--out", str(target), *options]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )

    local = segment(tmp_path / "local")
    done = segment(out, "--address", machines.address)
    assert (local.returncode, done.returncode) == (1, 1)
    assert "2 of 3 cases done" in done.stdout
    table = (out / "results.csv").read_text()
    assert table == (tmp_path / "local/results.csv").read_text()
    assert "b,failed" in table
    for name in "ac":
        files = [folder / name / "mask.nii.gz" for folder in (out, tmp_path / "local")]
        assert files[0].read_bytes() == files[1].read_bytes()
    again = segment(out, "--address", machines.address)
    assert again.stdout.count("already segmented") == 2


PAGE = (ROOT / "docs/cluster.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def page_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which Ray writes to a separate folder."""
    return dvc_environment() | {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Yield a folder for Ray with a path short enough for sockets; kill processes that use it."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            with suppress(psutil.Error):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_pages_commands_run_a_study_on_a_cluster(
    committed_run: Path, ray_folder: Path, tmp_path: Path
) -> None:
    """Only the port differs, and `ray stop` is left out: it would stop clusters of other tests."""
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), {"tiny/fold/0": fold(0)})
    [start] = [block for block in blocks("sh") if "ray start --head" in block]
    [work] = [block for block in blocks("sh") if "--address auto" in block]
    assert work.endswith("\nray stop\n")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    text = start.replace("6379", str(port)) + work.removesuffix("ray stop\n")
    done = subprocess.run(
        ["bash", "-ec", text], cwd=folder, env=page_environment(ray_folder), capture_output=True,
        text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_text(folder / TABLES[0])["training"]) == ["tiny/fold/0"]


def test_the_pages_slurm_job_runs_a_study(
    committed_run: Path, ray_folder: Path, tmp_path: Path
) -> None:
    """Scripts replace Slurm's programs; the job has one node and one GPU, which does not exist."""
    runs = {"tiny/fold/0": fold(0)}
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), runs)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\n")
    (programs / "srun").write_text(
        '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f"export PATH={programs}:$PATH\n")
    [job] = blocks("bash")
    slurm = {"CPUS_PER_TASK": "4", "GPUS_ON_NODE": "1", "JOB_ID": str(time.time_ns() // 10**6)}
    slurm |= {"JOB_NODELIST": "here", "NNODES": "1"}
    output = tmp_path / "output"  # not a pipe: without Slurm, Ray keeps running and holds it open
    with output.open("w") as file:
        done = subprocess.run(
            ["bash", "-c", job], cwd=folder, stdout=file, stderr=file, check=False, timeout=TIMEOUT,
            env=page_environment(ray_folder) | {f"SLURM_{key}": slurm[key] for key in slurm},
        )  # fmt: skip
    assert done.returncode == 0, output.read_text()
    assert list(read_text(folder / TABLES[0])["training"]) == ["tiny/fold/0"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_slurm_job_passes_shellcheck() -> None:
    [job] = blocks("bash")
    checked = subprocess.run(["shellcheck", "-"], input=job, text=True, check=False)
    assert checked.returncode == 0


def test_the_pages_other_commands_are_valid(committed_run: Path, tmp_path: Path) -> None:
    """Without GPUs, the command for GPUs fails and names the resources that it requests."""
    [cluster_of_pods] = [yaml.safe_load(block) for block in blocks("yaml")]
    assert (
        str(cluster_of_pods["spec"]["rayVersion"])
        in (ROOT / "requirements-cluster.txt").read_text()
    )
    [gpus] = [block for block in blocks("sh") if "--gpus-per-training" in block]
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), {"tiny/fold/0": fold(0)})
    done = subprocess.run(
        ["bash", "-ec", gpus], cwd=folder, capture_output=True, text=True, check=False,
        env=dvc_environment() | {"CUDA_VISIBLE_DEVICES": ""}, timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cores: 3, GPUs: 0.2." in done.stderr
