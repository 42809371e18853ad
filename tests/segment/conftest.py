"""Fixtures of the tests of segment, which need only requirements-segment.txt and pytest."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import segment as command
from heads import ALL, BrightTumor, Head, make_head, write_head


@pytest.fixture(scope="session")
def head() -> Head:
    return make_head()


@pytest.fixture
def patient(tmp_path: Path, head: Head) -> Path:
    """Return a folder with the three sequences of a head."""
    write_head(tmp_path / "patient", head, ALL)
    return tmp_path / "patient"


@pytest.fixture
def bright_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the command use BrightTumor instead of the released model."""
    monkeypatch.setattr(command, "ReleasedModel", BrightTumor)


class Outcome(NamedTuple):
    """The command's exit code, output and error output."""

    code: int
    output: str
    error: str


@pytest.fixture
def run(bright_model: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs the command with the given arguments."""

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            command.main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        written = capsys.readouterr()
        return Outcome(code, written.out, written.err)

    return call
