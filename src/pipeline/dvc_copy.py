"""Restore an output from DVC's cache or remote instead of downloading it again.

DVC removes a stage's outputs before it repeats the stage, even if only a seed or a line of code has
changed.
"""

from pathlib import Path
from typing import Any

import yaml

from pipeline.outputs import discard
from pipeline.params import leaves

LOCK_FILE = Path("dvc.lock")


def recorded_params(stage: str, lock_file: Path = LOCK_FILE) -> dict[str, Any]:
    """Return the params of a stage in dvc.lock by dotted name; empty if it records none."""
    if not lock_file.is_file():
        return {}
    lock = yaml.safe_load(lock_file.read_text(encoding="utf-8")) or {}
    files = lock.get("stages", {}).get(stage, {}).get("params", {})
    return dict(leaves(files.get("params.yaml", {})))


def restore(output: Path, target: Path, *, stage: str, params: dict[str, Any]) -> bool:
    """Copy `output` from DVC's cache or remote to `target`; return whether it was found.

    A copy is used only if dvc.lock records it for the same values of `params`.
    """
    recorded = recorded_params(stage)
    if output.is_absolute() or any(recorded.get(name) != value for name, value in params.items()):
        return False
    try:
        from dvc.api import DVCFileSystem  # slow to import and rarely needed

        DVCFileSystem(".").get(f"/{output.as_posix()}", str(target), recursive=True)
    except Exception as error:  # whatever a cache or a remote raises, download from the source
        discard(target)  # it may be incomplete
        print(f"DVC has no copy of {output} ({type(error).__name__}); getting it from its source")
        return False
    print(f"restored {output} from the copy that {LOCK_FILE} records")
    return True
