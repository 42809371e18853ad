"""Show the progress of trainings: one line each in the terminal, and one log file each."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

EPOCH = re.compile(r"epoch (\d+)/(\d+): train/loss ([\d.]+).* ([\d.]+) images/s$")
STAGE = re.compile(r"Running stage '(\w+)'")


class Progress:
    """One line per training. A terminal updates it in place; otherwise each update is printed."""

    def __init__(self, names: Mapping[str, str], logs: Path) -> None:
        """`names` maps experiments to trainings; `logs` is the folder for log files."""
        self.names, self.logs = names, logs
        self.bars: dict[str, tqdm[Any]] = {}
        self.started: dict[str, tuple[float, int]] = {}  # time (s) and number of the first epoch

    def log_file(self, experiment: str) -> Path:
        """Return the log file of a training."""
        return self.logs / f"{experiment.removeprefix('study-')}.log"

    def report(self, message: tuple[str, str, str]) -> None:
        """Log a line of a training's output and show its progress.

        A message is the experiment, the machine and the line.
        """
        experiment, machine, line = message
        self.logs.mkdir(exist_ok=True)
        with self.log_file(experiment).open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        if found := EPOCH.search(line):
            epoch, epochs = int(found[1]), int(found[2])
            status = f"epoch {epoch}/{epochs}, loss {found[3]}, {found[4]} images/s"
            start, first = self.started.setdefault(experiment, (time.monotonic(), epoch))
            if epoch > first:
                left = (time.monotonic() - start) / (epoch - first) * (epochs - epoch)
                status += f", {left / 60:.0f} min left"
        elif found := STAGE.search(line):
            status = found[1]
        elif line.startswith("test: "):
            status = line
        else:
            return
        self.show(experiment, f"{self.names[experiment]} on {machine}: {status}")

    def show(self, experiment: str, text: str) -> None:
        """Show the text as the training's line."""
        if experiment not in self.bars:
            self.bars[experiment] = tqdm(bar_format="{desc}", leave=False, disable=None)
        bar = self.bars[experiment]
        if bar.disable:
            print(text, flush=True)
        else:
            bar.set_description_str(text)

    def end(self, experiment: str, state: str) -> None:
        """Remove the training's line and print its final state."""
        if experiment in self.bars:
            self.bars.pop(experiment).close()
        tqdm.write(f"{self.names[experiment]}: {state}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in self.bars.values():
            bar.close()
