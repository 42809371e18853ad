"""Load slices as a network takes them: normalized and fitted, each once per training."""

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.parallel import n_threads, prefetch
from scans.fitting import fit, fit_mask, neighbors, padded_size
from scans.normalization import Normalization
from scans.tiff import read_image, read_mask


class Batch(NamedTuple):
    """Consecutive slices as the network takes them, and their original heights and widths."""

    images: NDArray[np.uint8]  # (N, S, S, 3)
    sizes: list[tuple[int, int]]


class Slices:
    """A table of slices, sorted by patient and slice number.

    `neighbors` has the positions of the slices before and after each slice, (N, 2).
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table.sort_values(["patient_id", "slice_number"], ignore_index=True)
        self.ids: list[str] = self.table["slice_id"].tolist()
        patient_ids, numbers = self.table["patient_id"], self.table["slice_number"]
        self.neighbors = neighbors(patient_ids.tolist(), numbers.tolist())

    def __len__(self) -> int:
        return len(self.ids)


def read_fitted(
    row: dict[Any, Any], *, image_size: int, normalization: Normalization
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the fitted scan of a row, (S, S, 3), and its original height and width."""
    image = read_image(Path(row["image"]))
    height, width = image.shape[:2]
    return fit(normalization(image, row["patient_id"]), image_size), (height, width)


def read_batches(
    slices: Slices, batch_size: int, *, image_size: int, normalization: Normalization
) -> Iterator[Batch]:
    """Read and fit the scans of a table; yield them in batches of consecutive slices."""
    load = partial(read_fitted, image_size=image_size, normalization=normalization)
    rows = slices.table[["image", "patient_id"]].to_dict("records")
    fitted = prefetch(load, rows, threads=n_threads(), depth=2 * batch_size)
    while chunk := list(islice(fitted, batch_size)):
        yield Batch(np.stack([image for image, _ in chunk]), [size for _, size in chunk])


class FittedSlices:
    """The scans and masks of a table of slices, normalized and fitted once.

    They are in a temporary file that is mapped into memory, so that processes share it and the
    operating system caches as much of it as fits. The file disappears when the last process that
    has it open ends.
    """

    def __init__(
        self,
        slices: Slices,
        *,
        image_size: int,
        normalization: Normalization,
        folder: Path,
        keep_original_masks: bool = False,
    ) -> None:
        self.slices = slices
        size = padded_size(image_size)
        self.sizes: list[tuple[int, int]] = []
        self.packed: list[NDArray[np.uint8]] = []  # masks at original size, one bit per pixel

        def load(row: dict[Any, Any]) -> tuple[bytes, NDArray[np.bool_]]:
            scan, _ = read_fitted(row, image_size=image_size, normalization=normalization)
            mask = read_mask(Path(row["mask"]))
            return scan.tobytes() + fit_mask(mask, image_size).tobytes(), mask

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            rows = slices.table[["image", "mask", "patient_id"]].to_dict("records")
            for record, mask in prefetch(load, rows, threads=n_threads(), depth=64):
                file.write(record)
                self.sizes.append((mask.shape[0], mask.shape[1]))
                if keep_original_masks:
                    self.packed.append(np.packbits(mask))
            file.flush()
            layout = [("image", "u1", (size, size, 3)), ("mask", "u1", (size, size))]
            records = np.memmap(file, layout, "c", shape=len(rows)) if rows else np.empty(0, layout)
        self.images, self.masks = records["image"], records["mask"]

    def __len__(self) -> int:
        return len(self.slices)

    def original_mask(self, position: int) -> NDArray[np.bool_]:
        """Return the reference mask of a slice at its original size, (H, W)."""
        height, width = self.sizes[position]
        bits = np.unpackbits(self.packed[position], count=height * width)
        return bits.reshape(height, width).view(np.bool_)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all scans in batches of consecutive slices."""
        for begin in range(0, len(self), batch_size):
            end = min(begin + batch_size, len(self))
            yield Batch(np.asarray(self.images[begin:end]), self.sizes[begin:end])
