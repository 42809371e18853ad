"""Run a stage: read paths from the command line and values from params.yaml, set the exit code.

A stage's `main` takes its paths as positional parameters and its params as keyword-only parameters
without defaults. The annotation of each param is its type: the model of a section, or a number such
as Seed. All params are checked before any work begins.
"""

import argparse
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.exits import exit_with_message
from pipeline.params import check_params, read_yaml

# Ctrl-C reaches every process of a terminal. Forked processes ignore it; the stage handles it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))


def dvc_note() -> str:
    """Return how to restore a stage's earlier outputs if DVC started it, otherwise ""."""
    if "DVC_STAGE" not in os.environ:
        return ""
    return (
        "\nDVC removed the stage's earlier outputs before it started. To restore those of the last "
        "commit, run `git restore metrics models MODEL_CARD.md dvc.lock && dvc checkout` in "
        f"{Path.cwd()}."
    )


def run(main: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Call `main` with paths from the command line and the params in its signature.

    If the input or a param is invalid, or the system fails (for example, a full disk or a missing
    permission), the process prints one message without a traceback and exits with code 1. After
    Ctrl-C, the code is 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Logs show each line at once, and terminals whose encoding lacks × print an escape.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    module = inspect.getmodule(main)
    parser = argparse.ArgumentParser(
        description=module.__doc__ if module else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    types = {}
    for parameter in inspect.signature(main).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            types[parameter.name] = parameter.annotation
        else:
            parser.add_argument(parameter.name, type=Path)
    paths = vars(parser.parse_args(argv))
    with exit_with_message(parser.prog, dvc_note()):
        main(*paths.values(), **(check_params(types, read_yaml()) if types else {}))
