"""Hash DVC's cache and all outputs again, to find files that were damaged.

    python src/verify.py

DVC does not hash a file again if its time and size are unchanged, and never hashes an object in its
cache again. If a disk or a program changed bytes, DVC would push them under the old hash.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.outputs import file_digest
from pipeline.refusals import refuse

FOLDER_SUFFIX = ".dir"  # of the hash of a folder; the object in the cache lists the folder's files


def display_path(path: Path) -> str:
    """Return a path relative to the current folder if it is inside it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def md5(path: Path) -> str:
    """Return the MD5 of a file, or "" if there is no file."""
    return file_digest(path, "md5") if path.is_file() else ""


def md5_of_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the MD5 of each file, computed in parallel."""
    ordered = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip(ordered, pool.map(md5, ordered), strict=True))


def damaged_objects(cache: Path) -> list[Path]:
    """Return the objects of a cache whose content does not match the hash in their name."""
    digests = md5_of_files(path for path in cache.glob("??/*") if path.is_file())
    return sorted(
        path
        for path, digest in digests.items()
        if f"{path.parent.name}{path.name}".removesuffix(FOLDER_SUFFIX) != digest
    )


def folder_object(digests: dict[str, str]) -> bytes:
    """Return the object that DVC stores for a folder, given its files' MD5 by relative path."""
    entries = [{"md5": digest, "relpath": path} for path, digest in sorted(digests.items())]
    return json.dumps(entries, sort_keys=True).encode()


def changed_files(output: Path, recorded: str, cache: Path, files: list[Path]) -> list[Path]:
    """Return the files of an output that differ from the hash recorded in dvc.lock.

    `files` are the existing files of the output. If it is a folder whose list of files is missing
    from the cache or damaged, return the folder itself.
    """
    if not recorded.endswith(FOLDER_SUFFIX):
        return [output] if md5(output) != recorded else []
    digests = {
        path.relative_to(output).as_posix(): digest for path, digest in md5_of_files(files).items()
    }
    if hashlib.md5(folder_object(digests)).hexdigest() + FOLDER_SUFFIX == recorded:  # noqa: S324
        return []
    recorded_list = cache / recorded[:2] / recorded[2:]
    try:
        entries = json.loads(recorded_list.read_bytes())
        expected = {entry["relpath"]: entry["md5"] for entry in entries}
    except (OSError, ValueError, LookupError, TypeError):  # not cached, or damaged itself
        return [output]
    paths = sorted(expected.keys() | digests.keys())
    return [output / path for path in paths if expected.get(path) != digests.get(path)]


def main() -> None:
    from dvc.repo import Repo  # slow to import

    with Repo() as repo:
        cache = Path(repo.cache.local.path)
        damaged = damaged_objects(cache)
        changed, n_outputs = [], 0
        for out in repo.index.outs:
            path = Path(out.fs_path)
            if out.hash_info and path.exists():
                walked = repo.dvcignore.walk(repo.fs, out.fs_path)
                files = [Path(folder) / name for folder, _, names in walked for name in names]
                changed += changed_files(path, out.hash_info.value, cache, files)
                n_outputs += 1
    problems = [f"damaged cache object: {display_path(path)}" for path in damaged]
    problems += [f"output differs from dvc.lock: {display_path(path)}" for path in changed]
    if problems:
        refuse(
            problems,
            "If outputs differ because `dvc repro` did not finish, run it first. Otherwise remove "
            "these files with the command below, restore them from the remote with `dvc pull`, and "
            "create those that the remote does not have with `dvc repro`:\n"
            f"  rm -r -- {shlex.join(map(display_path, [*damaged, *changed]))}",
        )
    print(
        f"{n_outputs} outputs match dvc.lock; objects in {display_path(cache)} match their hashes"
    )


if __name__ == "__main__":
    run(main)
