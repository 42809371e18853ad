"""Refusals: errors for the person who runs a stage, shown without a traceback."""

from collections.abc import Sequence
from typing import NoReturn

SHOWN = 10  # lines of one message


class Refusal(ValueError):
    """What is wrong, where, and how to go on, in words for the person who runs the stage."""


def first_ones(lines: Sequence[str]) -> list[str]:
    """Return the first ten lines, and how many more there are."""
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print what a person should know though work goes on; nothing where there are no lines."""
    if lines:
        print(f"{title}:", *first_ones(lines), sep="\n  ")


def remake(stage: str) -> str:
    """Return the end of a message about a bad output: how to write it again.

    DVC notices a change by a file's time and size; verify finds damage that kept both.
    """
    return (
        f"`dvc repro {stage}` writes it again; if DVC finds nothing to do, `make verify` shows "
        "what is damaged"
    )


def refuse(problems: Sequence[str], hint: str) -> NoReturn:
    """Raise one Refusal that lists the first ten problems, counts the rest and ends with a hint."""
    raise Refusal("\n".join([*first_ones(problems), hint]))
