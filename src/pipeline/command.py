"""How a stage starts and ends: paths from the command line, values from params.yaml, exit codes.

A stage's `main` names its paths as positional parameters, and what it reads of params.yaml as
keyword-only ones without defaults, each annotated with its type: a section's model, or a number
such as Seed. Everything is checked before any work begins.
"""

import argparse
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.exits import ending
from pipeline.params import check_params, read_yaml

# Ctrl-C reaches all processes of a terminal: those that a stage has forked leave it to the stage.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))


def dvc_note() -> str:
    """Return how to get a stage's earlier outputs back, where it was started by DVC."""
    if "DVC_STAGE" not in os.environ:
        return ""
    return (
        "\nDVC had removed the stage's earlier outputs before it started. Those of the last commit "
        "return with `git restore metrics models MODEL_CARD.md dvc.lock && dvc checkout` in "
        f"{Path.cwd()}."
    )


def run(main: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Call `main` with paths from the command line and the params that its signature names.

    Exits with 1 and one message, without a traceback, when the input, a param or the machine (a
    full disk, a missing permission) stops the stage; with 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log shows each line at once, and a × also where the terminal's encoding has none.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    module = inspect.getmodule(main)
    parser = argparse.ArgumentParser(
        description=module.__doc__ if module else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = {}
    for parameter in inspect.signature(main).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            kinds[parameter.name] = parameter.annotation
        else:
            parser.add_argument(parameter.name, type=Path)
    paths = vars(parser.parse_args(argv))
    with ending(parser.prog, dvc_note()):
        main(*paths.values(), **(check_params(kinds, read_yaml()) if kinds else {}))
