"""Hash everything that DVC shares once more: its cache, and the outputs beside dvc.lock.

    python src/verify.py

DVC trusts a file whose time and size are unchanged, and an object of its cache whatever it holds.
Where a disk or a program has changed bytes, it would push and publish them under the old hash.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from pipeline.command import run
from pipeline.outputs import file_digest
from pipeline.refusals import refuse

FOLDER = ".dir"  # ends the hash of a folder, whose object is the list of its files


def shown(path: Path) -> str:
    """Return a path as a person would write it, from the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, "" where there is no file."""
    return file_digest(path, "md5") if path.is_file() else ""


def hashed(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the MD5 of many files, several at a time."""
    ordered = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip(ordered, pool.map(md5, ordered), strict=True))


def damaged_objects(cache: Path) -> list[Path]:
    """Return the objects of a cache whose bytes are not those of their name."""
    digests = hashed(path for path in cache.glob("??/*") if path.is_file())
    return sorted(
        path
        for path, digest in digests.items()
        if f"{path.parent.name}{path.name}".removesuffix(FOLDER) != digest
    )


def listing(digests: dict[str, str]) -> bytes:
    """Return the object of a folder that holds these files, given by relative path, as DVC's."""
    entries = [{"md5": digest, "relpath": place} for place, digest in sorted(digests.items())]
    return json.dumps(entries, sort_keys=True).encode()


def changed_files(output: Path, recorded: str, cache: Path, files: list[Path]) -> list[Path]:
    """Return which files of an output are not as recorded; the output itself where that is unknown.

    `files` are those that there are.
    """
    if not recorded.endswith(FOLDER):
        return [output] if md5(output) != recorded else []
    digests = {path.relative_to(output).as_posix(): each for path, each in hashed(files).items()}
    if hashlib.md5(listing(digests)).hexdigest() + FOLDER == recorded:  # noqa: S324
        return []
    wanted_file = cache / recorded[:2] / recorded[2:]
    try:
        entries = json.loads(wanted_file.read_bytes())
        wanted = {entry["relpath"]: entry["md5"] for entry in entries}
    except (OSError, ValueError, LookupError, TypeError):  # not cached, or damaged itself
        return [output]
    places = wanted.keys() | digests.keys()
    return [output / place for place in sorted(places) if wanted.get(place) != digests.get(place)]


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
    problems = [f"not what its name says: {shown(path)}" for path in damaged]
    problems += [f"not as dvc.lock has it: {shown(path)}" for path in changed]
    if problems:
        refuse(
            problems,
            "Of outputs: run `dvc repro` first, if it has not come to its end. Otherwise remove "
            "what is wrong, get it from the remote by `dvc pull`, and make what is not there by "
            f"`dvc repro`:\n  rm -r -- {shlex.join(map(shown, [*damaged, *changed]))}",
        )
    print(f"{n_outputs} outputs are as dvc.lock has them, and {shown(cache)} as its names say")


if __name__ == "__main__":
    run(main)
