"""The copy of an output that DVC holds already, in its cache or a remote.

DVC removes a stage's outputs before it runs the stage again, also where only a seed or a line of
code has changed. What came over the network once need not come again.
"""

from pathlib import Path
from typing import Any

import yaml

from pipeline.outputs import discard
from pipeline.params import leaves

LOCK_FILE = Path("dvc.lock")


def recorded_params(stage: str, lock_file: Path = LOCK_FILE) -> dict[str, Any]:
    """Return the params that dvc.lock records for a stage by dotted name; empty if it has none."""
    if not lock_file.is_file():
        return {}
    lock = yaml.safe_load(lock_file.read_text(encoding="utf-8")) or {}
    files = lock.get("stages", {}).get(stage, {}).get("params", {})
    return dict(leaves(files.get("params.yaml", {})))


def restore(output: Path, target: Path, *, stage: str, params: dict[str, Any]) -> bool:
    """Write the recorded copy of `output` to `target`; return False when there is none to be had.

    Only a copy that dvc.lock records for the same values of `params` counts.
    """
    recorded = recorded_params(stage)
    if output.is_absolute() or any(recorded.get(name) != value for name, value in params.items()):
        return False
    try:
        from dvc.api import DVCFileSystem  # imported here: slow, and seldom needed

        DVCFileSystem(".").get(f"/{output.as_posix()}", str(target), recursive=True)
    except Exception as error:  # whatever a cache or a remote may raise, the source itself is next
        discard(target)  # part of it may have come
        print(f"DVC holds no copy of {output} ({type(error).__name__}); going to its source")
        return False
    print(f"took {output} from the copy that {LOCK_FILE} records")
    return True
