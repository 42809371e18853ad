"""The edge of every stage: paths from the command line, values from params.yaml, clear errors.

A stage's `main` names its paths as positional parameters and its params as keyword-only ones
without defaults, each annotated with type and range. That signature is the schema: the command line
and params.yaml are held against it before any work begins.
"""

import argparse
import inspect
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple, NoReturn

import yaml
from pydantic import ConfigDict, Field, ValidationError, validate_call

# Ctrl-C reaches all processes of a terminal: those that a stage has forked leave it to the stage.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))

PARAMS_FILE = Path("params.yaml")
SHOWN = 10

Seed = Annotated[int, Field(ge=0, lt=2**32)]


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block; pressed twice, it takes effect at once.

    For what must not be left halfway: processes that start, stop or speak to each other.
    """
    usual, held = signal.getsignal(signal.SIGINT), []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)
        signal.signal(signal.SIGINT, usual)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or usual is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if held:
        raise KeyboardInterrupt


class Refusal(ValueError):
    """What is wrong, where, and how to go on, in words for the person who runs the stage."""


def refuse(problems: Sequence[str], way_out: str) -> NoReturn:
    """Raise one Refusal that names the problems, the first ten in full, the rest counted."""
    lines = list(problems[:SHOWN])
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more")
    raise Refusal("\n".join([*lines, way_out]))


class ParamsLoader(yaml.SafeLoader):
    """YAML 1.2 floats on top of PyYAML's 1.1, which reads `1e-05`, as DVC writes it, as text."""


ParamsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class Param(NamedTuple):
    """A value of params.yaml and where it stands there."""

    name: str
    value: Any


def read_params(
    names: Iterable[str], params_file: Path = PARAMS_FILE, *, whole: Collection[str] = ()
) -> dict[str, Param]:
    """Return the values of params.yaml that `names` point at, by keyword of `main`.

    A section (`split`) gives each of its keys under its own name, unless it is one of those wanted
    `whole`; a single value (`seed`, `encoder.name`) is given as `seed`, `encoder_name`.
    """
    try:
        params = yaml.load(params_file.read_text(encoding="utf-8"), ParamsLoader)  # noqa: S506
    except FileNotFoundError:
        raise Refusal(
            f"no {params_file} in {Path.cwd()}; run the stage from the repository's root"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{params_file} is not valid YAML: {' '.join(str(error).split())}") from None
    found: dict[str, Param] = {}
    for name in names:
        value: Any = params
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise Refusal(f"{params_file} lacks `{name}`; compare it with the version in Git")
            value = value[key]
        values = {name.replace(".", "_"): Param(name, value)}
        if isinstance(value, dict) and name not in whole:
            values = {str(key): Param(f"{name}.{key}", item) for key, item in value.items()}
        for keyword in values.keys() & found.keys():
            raise Refusal(
                f"`{values[keyword].name}` stands beside `{found[keyword].name}`; drop it"
            )
        found |= values
    return found


def explained(error: ValidationError, params: Mapping[str, Param]) -> list[str]:
    """Return one line per refused param: its name, its value and what is wanted."""
    lines = []
    for detail in error.errors():
        keyword, *inner = (str(part) for part in detail["loc"])
        param = params.get(keyword, Param(keyword, None))
        name, value = param.name, param.value
        for part in inner:
            if isinstance(value, dict):  # else it is pydantic's word for an alternative of its type
                name, value = f"{name}.{part}", value.get(part)
        if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"unknown param `{name}`; check its spelling")
        elif detail["type"].startswith("missing"):
            lines.append(f"missing param `{name}`")
        else:
            lines.append(f"param `{name}` is {detail['input']!r}: {detail['msg'].lower()}")
    return lines


def dvc_note() -> str:
    """Return how to get a stage's earlier outputs back, where it was started by DVC."""
    if "DVC_STAGE" not in os.environ:
        return ""
    return (
        "\nDVC had removed the stage's earlier outputs before it started. Those of the last commit "
        "return with `git restore metrics MODEL_CARD.md dvc.lock && dvc checkout` in "
        f"{Path.cwd()}."
    )


def run(main: Callable[..., None], *names: str, argv: Sequence[str] | None = None) -> None:
    """Call `main` with paths from the command line and the params that `names` point at.

    A section that `main` has a keyword for is handed over whole. Exits with 1 and one message,
    without a traceback, when the input, a param or the machine (a full disk, a missing permission)
    stops the stage; with 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # or a log shows nothing until the end
    module = inspect.getmodule(main)
    parser = argparse.ArgumentParser(
        description=module.__doc__ if module else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parameters = inspect.signature(main).parameters.values()
    keywords = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter.name not in keywords:
            parser.add_argument(parameter.name, type=Path)
    paths = vars(parser.parse_args(argv))
    try:
        checked = validate_call(config=ConfigDict(strict=True, allow_inf_nan=False))(main)
        params = read_params(names, whole=keywords)
        try:
            checked(*paths.values(), **{key: param.value for key, param in params.items()})
        except ValidationError as error:
            refuse(explained(error, params), f"Correct it in {PARAMS_FILE} or in the -S override.")
    except (Refusal, OSError) as error:
        print(f"{parser.prog}: error: {error}{dvc_note()}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        way_on = str(interrupt) or "run the same command again"
        print(f"{parser.prog}: interrupted; {way_on}{dvc_note()}", file=sys.stderr)
        sys.exit(130)
