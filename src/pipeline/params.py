"""Params: the values of params.yaml, checked against the types that a stage declares.

Each section has a frozen model, which stands in `params.py` of the package that the section is
about, or in the one stage that reads it. A stage's `main` names the sections that it reads as
keyword-only parameters; DVC tracks those, except `compute.workers`, which changes no output.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    create_model,
    field_validator,
)

from pipeline.refusals import Refusal, refuse

PARAMS_FILE = Path("params.yaml")

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A section of params.yaml. It cannot be changed, and refuses keys that it does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def keep_integers(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Return the checked value; 15 stays 15 where a float is wanted, as it is written."""
        checked = check(value)
        return value if isinstance(value, int) else checked


class ParamsLoader(yaml.SafeLoader):
    """YAML 1.2 floats on top of PyYAML's 1.1, which reads `1e-05`, as DVC writes it, as text."""


ParamsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(params_file: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return what params.yaml holds, unchecked; refuse a file that is missing or no mapping."""
    try:
        content = yaml.load(params_file.read_text(encoding="utf-8"), ParamsLoader)  # noqa: S506
    except FileNotFoundError:
        raise Refusal(
            f"no {params_file} in {Path.cwd()}; run the stage from the repository's root"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{params_file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{params_file} has no sections; compare it with the version in Git")
    return content


def check_params(kinds: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `params` that `kinds` names, each as its type: a Section, or a number.

    Refuses all values that are missing, unknown or out of range at once.
    """
    fields = {name: (kind, ...) for name, kind in kinds.items()}
    model = create_model("Params", __base__=Section, **fields)  # type: ignore[call-overload]
    wanted = {name: value for name, value in params.items() if name in kinds}
    try:
        checked = model.model_validate(wanted)
    except ValidationError as error:
        refuse(explain(error, wanted), f"Correct it in {PARAMS_FILE} or in the -S override.")
    return {name: getattr(checked, name) for name in kinds}


def explain(error: ValidationError, params: Mapping[str, Any]) -> list[str]:
    """Return one line for each refused param: its name, its value and what is wanted."""
    lines = []
    for detail in error.errors():
        keys: list[str] = []
        value: Any = params
        missing = detail["type"] == "missing"
        for key in detail["loc"]:
            if isinstance(value, Mapping) and (key in value or missing):
                keys.append(str(key))
                value = value.get(key)  # other keys name one of several alternative types
        name = ".".join(keys)
        if detail["type"] == "extra_forbidden":
            lines.append(f"unknown param `{name}`; check its spelling")
        elif missing:
            lines.append(f"missing param `{name}`")
        elif detail["type"] == "model_type":
            lines.append(f"param `{name}` is {detail['input']!r}: it should be a section")
        else:
            lines.append(f"param `{name}` is {detail['input']!r}: {detail['msg'].lower()}")
    return lines


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each param's dotted name, such as `train.augment.flip`, and its value, in order."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
