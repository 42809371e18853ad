"""Write outputs atomically: to a temporary path next to the target, then rename."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.refusals import Refusal

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and some stages do not need it

DECIMALS = 5


def discard(path: Path) -> None:
    """Remove the file or folder at `path`, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def living_process(pid: int, since: float) -> psutil.Process | None:
    """Return the process with this id if it started before `since` (s) and is still alive."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            is_dead = process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since
    except psutil.NoSuchProcess:
        return None
    return None if is_dead else process


def remove_leftovers(target: Path) -> None:
    """Remove partial outputs of dead processes; raise an error if a live one writes the target."""
    name = re.compile(rf"\.{re.escape(target.name)}(?:\.(\d+))?\.partial")
    for path in target.parent.iterdir():
        if match := name.fullmatch(path.name):
            writer = living_process(int(match[1] or 0), path.stat().st_mtime)
            if writer is not None:
                raise Refusal(
                    f"{target}: process {writer.pid} is writing it; wait until that process ends "
                    f"or end it with `kill {writer.pid}`, then run this command again"
                )
            discard(path)


@contextmanager
def replacing(*targets: Path) -> Iterator[list[Path]]:
    """Yield a temporary path for each target; if the block succeeds, rename them to the targets.

    The paths are in hidden folders next to the targets, `.<name>.<process>.partial`, which Git and
    DVC ignore. After an error, they are removed and the targets are unchanged. The next process
    removes what a killed process left. Raises an error if a live process is writing a target.
    """
    folders = [target.with_name(f".{target.name}.{os.getpid()}.partial") for target in targets]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
    partials = [folder / target.name for folder, target in zip(folders, targets, strict=True)]
    try:
        for folder in folders:
            folder.mkdir()
        yield partials
        for partial, target in zip(partials, targets, strict=True):
            if target.is_dir():
                discard(target)
            partial.replace(target)
    finally:
        for folder in folders:
            discard(folder)


def rounded(value: Any) -> Any:
    """Return a value, dict or list with floats rounded to five decimals and NaN as None."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, DECIMALS)
    return value


def write_tables(folder: Path, tables: "dict[str, pd.DataFrame]") -> None:
    """Write each table to a folder as `<name>.csv`, with floats rounded to five decimals."""
    for name, table in tables.items():
        table.round(DECIMALS).to_csv(folder / f"{name}.csv", index=False)


def json_text(values: dict[str, Any]) -> str:
    """Return values as the text of a JSON file, with floats rounded to five decimals."""
    return json.dumps(rounded(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write metrics as JSON for `dvc metrics`, with floats rounded to five decimals."""
    with replacing(path) as [partial]:
        partial.write_text(json_text(metrics), encoding="utf-8")


def read_metrics(path: Path, hint: str) -> dict[str, Any]:
    """Return metrics from write_metrics; raise an error if the file is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"{path}: cannot be read ({error}). {hint}") from None
    return content


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file; `algorithm` is a name that hashlib knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    return file_digest(path, "sha256")
