"""Read params.yaml and check its values against the types that a stage declares.

Each section has a frozen model, defined in `params.py` of the package that the section is about or
in the only stage that reads it. A stage's `main` takes the sections that it reads as keyword-only
parameters. DVC tracks these sections, except `compute.workers`, which changes no output.
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
    """A section of params.yaml. It is immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def keep_integers(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Return the checked value; an integer for a float field stays an integer (15, not 15.0).

        The report shows params as params.yaml spells them.
        """
        checked = check(value)
        return value if isinstance(value, int) else checked


class ParamsLoader(yaml.SafeLoader):
    """Read `1e-05`, which DVC writes, as a float (as in YAML 1.2); PyYAML reads it as text."""


ParamsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(params_file: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return the unchecked values of params.yaml; raise an error if it is missing or no mapping."""
    try:
        content = yaml.load(params_file.read_text(encoding="utf-8"), ParamsLoader)  # noqa: S506
    except FileNotFoundError:
        raise Refusal(
            f"no {params_file} in {Path.cwd()}; run the stage in the root of the repository"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{params_file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{params_file} has no sections; compare it with the committed version")
    return content


def check_params(types: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params named in `types`, each converted to its type: a Section or a number.

    One error lists all values that are missing, unknown or out of range.
    """
    fields = {name: (kind, ...) for name, kind in types.items()}
    model = create_model("Params", __base__=Section, **fields)  # type: ignore[call-overload]
    selected = {name: value for name, value in params.items() if name in types}
    try:
        checked = model.model_validate(selected)
    except ValidationError as error:
        refuse(explain(error, selected), f"Correct this in {PARAMS_FILE} or in the -S override.")
    return {name: getattr(checked, name) for name in types}


def explain(error: ValidationError, params: Mapping[str, Any]) -> list[str]:
    """Return one line for each invalid param, with its name, its value and what is expected."""
    lines = []
    for detail in error.errors():
        keys: list[str] = []
        value: Any = params
        missing = detail["type"] == "missing"
        for key in detail["loc"]:
            if isinstance(value, Mapping) and (key in value or missing):
                keys.append(str(key))
                value = value.get(key)  # pydantic's other keys name a member of a union
        name = ".".join(keys)
        if detail["type"] == "extra_forbidden":
            lines.append(f"unknown param `{name}`; check the spelling")
        elif missing:
            lines.append(f"missing param `{name}`")
        elif detail["type"] == "model_type":
            lines.append(f"param `{name}` is {detail['input']!r}; expected a section")
        else:
            lines.append(f"param `{name}` is {detail['input']!r}: {detail['msg'].lower()}")
    return lines


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name (such as `train.augment.flip`) and value of each param, in order."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
