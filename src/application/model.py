"""The released model: an ONNX file that says itself how it is used."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.outputs import file_sha256
from pipeline.parallel import n_threads
from pipeline.refusals import Refusal
from scans.sequences import MAIN, NAMES, lacking

CHUNK = 16  # slices computed at a time
HINT = "`git restore models` brings the released one back."


class ReleasedModel:
    """The network in an ONNX file, and the description in its metadata."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise Refusal(f"{path}: no such model. {HINT}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = n_threads()
        # Threads that wait by spinning would hold up whatever else the machine does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            properties = self.session.get_modelmeta().custom_metadata_map
            self.description: dict[str, Any] = json.loads(properties["model"])
        except Exception as error:  # of many kinds, from onnxruntime
            reason = " ".join(str(error).split())
            raise Refusal(f"{path}: not a model of this project ({reason}). {HINT}") from None
        self.sha256 = file_sha256(path)
        self.takes = self.description["input"]
        self.check_sequences()

    def check_sequences(self) -> None:
        """Refuse a model whose main sequence is not FLAIR."""
        if (main := self.sequences[MAIN]) != "flair":
            raise Refusal(f"the model's main sequence is {NAMES[main]}; segment works with FLAIR")

    @property
    def sequences(self) -> tuple[str, str, str]:
        """Return the sequence of each channel of a slice."""
        first, main, last = self.takes["sequences"]
        return first, main, last

    def probabilities(
        self, slices: NDArray[np.uint8], step: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """Return the probability of tumor, (N, S, S), of consecutive slices (N, S, S, 3).

        They are computed in chunks, with a slice more at each end, for the network sees neighbors.
        `step` is called with the number of slices that were just computed.
        """
        found = []
        for begin in range(0, len(slices), CHUNK):
            end = min(begin + CHUNK, len(slices))
            first = max(begin - 1, 0)
            [answer] = self.session.run(None, {self.takes["name"]: slices[first : end + 1]})
            found.append(answer[begin - first : end - first])
            step(end - begin)
        return np.concatenate(found)

    def stride(self, spacing: float) -> int:
        """Return how many slices apart neighbors are to be, where slices are `spacing` mm apart."""
        return max(1, round(float(self.takes["slice_spacing_mm"]) / spacing))

    def score_without(self, missing: Sequence[str]) -> str:
        """Return how well patients were segmented in the test who lack these sequences."""
        wanted = lacking(missing)
        for group in self.description["test"]["by_missing_sequence"]:
            if group["missing"] == wanted:
                n = group["n_patients"]
                patients = f"{n} patients" if n > 1 else "one patient"
                mean = f"Dice {group['dice_patient_mean']:.3f}"
                return f"{mean} in the {patients} of the test without {wanted}"
        return f"the test had no patient without {wanted}, so how well it does is not known"


@lru_cache
def loaded_once(path: Path) -> ReleasedModel:
    """Return the model in a file, which a process that segments many patients loads once."""
    return ReleasedModel(path)
