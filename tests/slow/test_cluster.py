"""The study and a cohort on Ray: on this machine, and on a cluster of several machines in one."""

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
# As where Ray is not installed.
WITHOUT_RAY = "import runpy, sys; sys.modules['ray'] = None; sys.path.insert(0, 'study'); "
WITHOUT_RAY += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
LIMIT = 240  # seconds in which a study of these tests ends, on a machine that does other things too


def fold(number: int, **train: object) -> dict[str, Any]:
    """Return what a training wants otherwise than params.yaml."""
    return {"split": {"test_fold": number}, "train": {"repeat": 3, **train}}


def study(folder: Path, runs: dict[str, Any]) -> Path:
    """Make a repository one of this study alone, committed and without earlier rows."""
    (folder / "study/runs.yaml").write_text(yaml.safe_dump(runs))
    for table in TABLES:
        (folder / table).unlink()
    commit_all(folder)
    return folder


def command(*words: str, ray: bool = True) -> list[str]:
    """Return the command that runs a study."""
    start = [] if ray else ["-c", WITHOUT_RAY]
    return [sys.executable, *start, "study/run.py", *words]


def run(folder: Path, *words: str, ray: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a study to its end."""
    return subprocess.run(
        command(*words, ray=ray), cwd=folder, env=dvc_environment(), capture_output=True,
        text=True, check=False, timeout=LIMIT,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], running: subprocess.Popen[Any]) -> None:
    """Wait until a condition is true, as long as a process runs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert running.poll() is None, "ended before"
        assert time.monotonic() < end
        time.sleep(0.2)


def tables_of(folder: Path) -> list[Any]:
    """Return the tables of a study, but for what trainings have cost."""
    texts = [read_text(folder / path) for path in TABLES]
    return [texts[0].drop(columns=COST).to_csv(), *(text.to_csv() for text in texts[1:])]


def log(folder: Path, name: str) -> str:
    """Return the log of a training so far."""
    path = folder / f"study/logs/{name.replace('/', '-')}.log"
    return path.read_text() if path.exists() else ""


@pytest.fixture
def machines() -> Iterator[Any]:
    """Yield a cluster of three machines with one core each, of which two can be taken away."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    made.workers = [made.add_node(num_cpus=1, num_gpus=0) for _ in range(2)]
    yield made
    made.shutdown()


def test_three_machines_one_lost_give_the_tables_of_one(
    committed_run: Path, machines: Any, tmp_path: Path
) -> None:
    runs = {f"tiny/fold/{n}": fold(n, epochs=8) for n in range(3)}
    alone = study(clone_with_outputs(committed_run, tmp_path / "alone"), runs)
    done = run(alone, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr

    shared = study(clone_with_outputs(committed_run, tmp_path / "shared"), runs)
    with subprocess.Popen(
        command("--address", machines.address), cwd=shared, env=dvc_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as running:  # fmt: skip
        wait_for(lambda: all("epoch 1/8" in log(shared, name) for name in runs), running)
        machines.remove_node(machines.workers[0], allow_graceful=False)
        output, _ = running.communicate(timeout=LIMIT)
    assert running.returncode == 0, output
    assert sum(log(shared, name).count("resumed at epoch") for name in runs) == 1
    assert tables_of(shared) == tables_of(alone)
    listed = dvc(shared, "exp", "list", "--name-only").stdout.split()
    assert set(listed) == {f"study-tiny-fold-{n}" for n in range(3)}


def test_after_ctrl_c_the_same_command_does_the_rest_and_a_failure_stops_nobody(
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
        _, error = running.communicate(timeout=30)
    assert running.returncode == 130
    assert error.rstrip().endswith("interrupted; run the same command again")
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert list(read_text(table)["training"]) == ["tiny/quick/0"]
    before = (folder / TABLES[1]).read_text()

    done = run(folder)
    assert done.returncode == 1
    assert not list(scratch.glob("study-*"))  # what was killed may leave one, to the next start
    assert "tiny/quick/0" not in done.stdout
    assert "resumed at epoch" in log(folder, "tiny/long/1")
    assert "tiny/bad/2: train.py: error: the loss is nan in epoch 1" in done.stderr
    assert "study/logs/tiny-bad-2.log" in done.stderr
    assert done.stderr.rstrip().endswith("1 of 2 trainings failed")
    assert list(read_text(table)["training"]) == ["tiny/long/1", "tiny/quick/0"]
    assert (folder / TABLES[1]).read_text().endswith(before.partition("\n")[2])


def test_inputs_come_from_the_remote_where_the_cache_lacks_them(
    committed_run: Path, tmp_path: Path
) -> None:
    """Also where the remote's path is longer than a line of the terminal."""
    runs = {"tiny/fold/0": fold(0)}
    folder = study(clone_with_outputs(committed_run, tmp_path / ("long" * 30) / "brain"), runs)
    kept = folder.rename(folder.with_name("kept"))
    subprocess.run(["git", "clone", "--quiet", kept, folder], check=True)

    done = run(folder, ray=False)
    assert done.returncode == 1
    assert "data/intensities.csv\n" in done.stderr
    assert "The remote lacks these" in done.stderr
    assert "`dvc push`" in done.stderr
    assert not (folder / "study/logs").exists()

    pushed = dvc(kept, "push")
    assert pushed.returncode == 0, pushed.stderr
    done = run(folder, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [rev] = dvc(folder, "exp", "list", "--name-only").stdout.split()
    got = dvc(folder, "get", ".", "models/unet.safetensors", "--rev", rev, "--out", "unet")
    assert got.returncode == 0, got.stderr
    assert not (folder / "data/slices").exists()


def test_what_is_not_committed_is_refused(committed_run: Path, tmp_path: Path) -> None:
    folder = clone_with_outputs(committed_run, tmp_path / "brain")
    for path in ("params.yaml", "src/train.py"):
        with (folder / path).open("a") as file:
            file.write("# changed\n")
    done = run(folder, "folds/context/0")
    assert done.returncode == 1
    assert "error: params.yaml: differs from the last commit\n" in done.stderr
    assert "\nsrc/train.py: differs from the last commit\n" in done.stderr
    assert "`git commit` or `git restore` these first" in done.stderr


SHARES = """
import json, os, sys, time
sys.path.insert(0, "src")
from pipeline import cluster
def seen(number):
    time.sleep(0.2)
    return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
with cluster.joined(sys.argv[1]):
    for gpus in (None, 0.25, 0.5, 2):
        share = cluster.usual_share(None, gpus)
        done = [outcome.result for _, outcome in cluster.outcomes(seen, range(12), share=share)]
        print(json.dumps([share, done]))
"""


def test_a_share_of_a_gpu_decides_what_a_task_sees() -> None:
    """On a machine of eight cores and two GPUs, which are declared and not there."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 2})
    try:
        done = subprocess.run(
            [sys.executable, "-c", SHARES, made.address], cwd=ROOT, capture_output=True, text=True,
            check=False, timeout=LIMIT,
        )  # fmt: skip
    finally:
        made.shutdown()
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [share for share, _ in found] == [[4, 1], [1, 0.25], [2, 0.5], [8, 2]]
    for (_, gpus), results in found:
        assert len(results) == 12
        for devices in results:
            assert len(devices) == max(1, gpus)
            assert set(devices) <= {"0", "1"}


LOST = """
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
    if kind == "wrong":
        raise ValueError("of its own\\nand more")
    if kind == "always killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return tries.read_text()
kinds = ["killed child", "killed", "wrong", "always killed", "well"]
with cluster.joined(None):
    done = dict(cluster.outcomes(work, kinds, share=cluster.Share(1)))
tries = len((folder / "always killed").read_text())
print(json.dumps([done, tries]))
"""


def test_what_is_killed_is_repeated_and_what_is_wrong_is_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST, str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes, n_tries = json.loads(done.stdout.splitlines()[-1])  # Ray itself tells of repeats
    assert outcomes["killed child"] == ["xx", ""]
    assert outcomes["killed"] == ["xx", ""]
    assert outcomes["well"] == ["x", ""]
    assert outcomes["wrong"] == [None, "ValueError: of its own"]
    assert outcomes["always killed"][1].startswith("lost 4 times, with its process or machine: ")
    assert n_tries == 4


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with the script that commands of a training are run by."""
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
def test_a_command_that_was_killed_is_told_from_one_that_failed(
    project: Path, code: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(task.lines_of([sys.executable, "-c", code], project, project, None))


def test_a_command_ends_with_its_parent_and_its_folder_goes(project: Path) -> None:
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
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        running.wait(30)
    assert not folder.exists()


@pytest.mark.parametrize("n_failures", [0, 2, 3])
def test_a_push_that_fails_is_repeated_twice(n_failures: int) -> None:
    calls = []

    def execute(*words: str) -> None:
        calls.append(words)
        if len(calls) <= n_failures:
            raise subprocess.CalledProcessError(1, words)

    if n_failures < 3:
        task.push(execute)
    else:
        with pytest.raises(subprocess.CalledProcessError):
            task.push(execute)
    assert calls == [("push", task.MODEL)] * min(n_failures + 1, 3)


def test_a_cache_is_known_by_its_mark_as_another_machine_may_have_one_at_the_same_path(
    tmp_path: Path,
) -> None:
    (tmp_path / "files").mkdir()
    with cluster.marked(tmp_path) as mark:
        assert task.has_inputs(str(tmp_path), mark.name, ["files"])
        assert not task.has_inputs(str(tmp_path), mark.name, ["files", "others"])
    assert not task.has_inputs(str(tmp_path), mark.name, ["files"])


def test_threads_follow_the_share_of_the_cores() -> None:
    code = "import sys; sys.path.insert(0, 'src'); from pipeline.parallel import n_threads; "
    code += "import torch; print(n_threads(), torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=task.environment(1), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1"]
    assert task.environment(3)["OMP_NUM_THREADS"] == "3"
    assert task.environment(None).get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def test_more_than_a_machine_has_is_refused(
    machines: Any, committed_run: Path, tmp_path: Path
) -> None:
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), {"tiny/fold/0": fold(0)})
    done = run(folder, "--address", machines.address, "--cpus-per-training", "2")
    assert done.returncode == 1
    assert "no machine of the cluster has 2 cores and 0 GPUs; it has:" in done.stderr
    assert done.stderr.count(": 1 cores, 0 GPUs") == 3


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "ray://127.0.0.1:9"])
def test_an_address_where_nobody_answers_is_refused(address: str) -> None:
    with pytest.raises(Refusal, match=f"no Ray cluster answers at {address} "):
        cluster.refuse_unreachable(address)


PRIVATE = """
import json, os, sys
sys.path.insert(0, "src")
import psutil
from pipeline import cluster
with cluster.joined(None):
    list(cluster.outcomes(lambda number: -number, [1], share=cluster.Share(1)))
    family = psutil.Process().children(recursive=True)
    family += [each for each in psutil.process_iter() if each.ppid() in [p.pid for p in family]]
    open_ = [c.laddr.ip for p in {p.pid: p for p in [psutil.Process(), *family]}.values()
             for c in p.net_connections() if c.status == "LISTEN"]
print(json.dumps([open_, os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"]]))
"""


def test_ray_started_here_is_reached_from_here_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    addresses, mode, statistics = json.loads(done.stdout)
    assert len(addresses) >= 3
    assert {each.removeprefix("::ffff:") for each in addresses} == {"127.0.0.1"}
    assert (mode, statistics) == ("token", "0")


def test_a_cohort_on_a_cluster_has_the_results_of_one_process(
    machines: Any, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "results"
    for name in "abc":
        write_head(cohort / name, make_head(seed=ord(name)), ALL)
    (cohort / "b/flair.nii.gz").write_bytes(b"no scan")

    def segment(target: Path, *words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "src/segment.py", str(cohort), "--out", str(target), *words]
        return subprocess.run(
            line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT
        )

    alone = segment(tmp_path / "alone")
    done = segment(out, "--address", machines.address)
    assert (alone.returncode, done.returncode) == (1, 1)
    assert "2 of 3 cases done" in done.stdout
    table = (out / "results.csv").read_text()
    assert table == (tmp_path / "alone/results.csv").read_text()
    assert "b,failed" in table
    for name in "ac":
        files = [folder / name / "mask.nii.gz" for folder in (out, tmp_path / "alone")]
        assert files[0].read_bytes() == files[1].read_bytes()
    again = segment(out, "--address", machines.address)
    assert again.stdout.count("was done before") == 2


PAGE = (ROOT / "docs/cluster.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def page_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which Ray keeps what it writes apart from other tests."""
    return dvc_environment() | {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def apart() -> Iterator[Path]:
    """Yield a folder for Ray, with a short path for its sockets; end what runs there."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            with suppress(psutil.Error):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_page_runs_a_study_on_a_cluster(
    committed_run: Path, apart: Path, tmp_path: Path
) -> None:
    """But for the port, and `ray stop`, which would end the clusters of other tests, too."""
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), {"tiny/fold/0": fold(0)})
    [start] = [block for block in blocks("sh") if "ray start --head" in block]
    [work] = [block for block in blocks("sh") if "--address auto" in block]
    assert work.endswith("\nray stop\n")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    text = start.replace("6379", str(port)) + work.removesuffix("ray stop\n")
    done = subprocess.run(
        ["bash", "-ec", text], cwd=folder, env=page_environment(apart), capture_output=True,
        text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_text(folder / TABLES[0])["training"]) == ["tiny/fold/0"]


def test_the_page_runs_a_study_in_a_slurm_job(
    committed_run: Path, apart: Path, tmp_path: Path
) -> None:
    """With programs in the place of Slurm's, for one node with one GPU, which is declared."""
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
    output = tmp_path / "output"  # no pipe: Ray goes on here, which Slurm would end with the job
    with output.open("w") as file:
        done = subprocess.run(
            ["bash", "-c", job], cwd=folder, stdout=file, stderr=file, check=False, timeout=LIMIT,
            env=page_environment(apart) | {f"SLURM_{name}": word for name, word in slurm.items()},
        )  # fmt: skip
    assert done.returncode == 0, output.read_text()
    assert list(read_text(folder / TABLES[0])["training"]) == ["tiny/fold/0"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_slurm_job_passes_shellcheck() -> None:
    [job] = blocks("bash")
    checked = subprocess.run(["shellcheck", "-"], input=job, text=True, check=False)
    assert checked.returncode == 0


def test_the_pages_other_commands_are_understood(committed_run: Path, tmp_path: Path) -> None:
    """The one for GPUs is refused where there are none, by what it asks for."""
    [cluster_of_pods] = [yaml.safe_load(block) for block in blocks("yaml")]
    assert (
        str(cluster_of_pods["spec"]["rayVersion"])
        in (ROOT / "requirements-cluster.txt").read_text()
    )
    [gpus] = [block for block in blocks("sh") if "--gpus-per-training" in block]
    folder = study(clone_with_outputs(committed_run, tmp_path / "brain"), {"tiny/fold/0": fold(0)})
    done = subprocess.run(
        ["bash", "-ec", gpus], cwd=folder, capture_output=True, text=True, check=False,
        env=dvc_environment() | {"CUDA_VISIBLE_DEVICES": ""}, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no machine of the cluster has 3 cores and 0.2 GPUs" in done.stderr
