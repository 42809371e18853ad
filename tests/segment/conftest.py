"""What the tests of segment share; they need no more than requirements-segment.txt and pytest."""

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
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command use BrightTumor in the place of the released model."""
    monkeypatch.setattr(command, "ReleasedModel", BrightTumor)


class Ended(NamedTuple):
    """How the command ended, and what it wrote."""

    code: int
    output: str
    error: str


@pytest.fixture
def run(told: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Call the command as a person would."""

    def call(*words: object) -> Ended:
        capsys.readouterr()
        code = 0
        try:
            command.main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        written = capsys.readouterr()
        return Ended(code, written.out, written.err)

    return call
