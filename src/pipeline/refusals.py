"""Refusals: errors for the person who runs a stage, shown without a traceback."""

from collections.abc import Sequence
from typing import NoReturn

SHOWN = 10  # problems listed in one message


class Refusal(ValueError):
    """What is wrong, where, and how to go on, in words for the person who runs the stage."""


def refuse(problems: Sequence[str], hint: str) -> NoReturn:
    """Raise one Refusal that lists the first ten problems, counts the rest and ends with a hint."""
    lines = list(problems[:SHOWN])
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more")
    raise Refusal("\n".join([*lines, hint]))
