"""Params by dotted name, as DVC names them: `train.augment.flip`."""

from collections.abc import Iterator
from typing import Any


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each param of a section, in its order."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
