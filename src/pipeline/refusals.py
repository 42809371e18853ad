"""Errors for the person who runs a stage, shown without a traceback."""

from collections.abc import Sequence
from typing import NoReturn

SHOWN = 10  # lines of one message


class Refusal(ValueError):
    """An error in the input or settings: its message says what is wrong, where and what to do."""


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 epoch" or "2 epochs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def truncated(lines: Sequence[str]) -> list[str]:
    """Return the first ten lines, followed by the number of remaining lines if there are any."""
    rest = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *rest]


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print warnings under a title, without stopping; print nothing if there are none."""
    if lines:
        print(f"{title}:", *truncated(lines), sep="\n  ")


def rebuild_hint(stage: str) -> str:
    """Return a hint for messages about a damaged output: how to create it again.

    DVC detects changes by a file's time and size; `make verify` finds damage that changed neither.
    """
    return (
        f"`dvc repro {stage}` writes it again; if DVC finds nothing to do, run `make verify` to "
        "find damaged files"
    )


def refuse(problems: Sequence[str], hint: str) -> NoReturn:
    """Raise a Refusal with the first ten problems, the number of remaining ones and a hint."""
    raise Refusal("\n".join([*truncated(problems), hint]))
