"""What is seen of trainings while they run: a line each in the terminal, and a log file each."""

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
    """The lines of a study: in a terminal they change in place, elsewhere each change is a line."""

    def __init__(self, names: Mapping[str, str], logs: Path) -> None:
        """`names` are those of trainings by experiment; `logs` is the folder of the log files."""
        self.names, self.logs = names, logs
        self.bars: dict[str, tqdm[Any]] = {}
        self.began: dict[str, tuple[float, int]] = {}  # the first epoch that was seen, and when

    def log_of(self, experiment: str) -> Path:
        """Return the log file of a training."""
        return self.logs / f"{experiment.removeprefix('study-')}.log"

    def tell(self, report: tuple[str, str, str]) -> None:
        """Log a line of output and show what it says; it comes with experiment and machine."""
        experiment, machine, line = report
        self.logs.mkdir(exist_ok=True)
        with self.log_of(experiment).open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        if found := EPOCH.search(line):
            epoch, epochs = int(found[1]), int(found[2])
            what = f"epoch {epoch}/{epochs}, loss {found[3]}, {found[4]} images/s"
            began, first = self.began.setdefault(experiment, (time.monotonic(), epoch))
            if epoch > first:
                left = (time.monotonic() - began) / (epoch - first) * (epochs - epoch)
                what += f", {left / 60:.0f} min left"
        elif found := STAGE.search(line):
            what = found[1]
        elif line.startswith("test: "):
            what = line
        else:
            return
        self.show(experiment, f"{self.names[experiment]} on {machine}: {what}")

    def show(self, experiment: str, text: str) -> None:
        """Show the line of a training."""
        if experiment not in self.bars:
            self.bars[experiment] = tqdm(bar_format="{desc}", leave=False, disable=None)
        bar = self.bars[experiment]
        if bar.disable:
            print(text, flush=True)
        else:
            bar.set_description_str(text)

    def end(self, experiment: str, state: str) -> None:
        """Close the line of a training, and say how it ended."""
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
