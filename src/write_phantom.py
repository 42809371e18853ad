"""Write the phantom in a layout that can be trained on, to see how a data set should look.

    python src/write_phantom.py phantom-bids bids
    dvc exp run -S 'acquire.dataset="phantom-bids"'

The layouts are slices, brats, bids and nnunet; docs/own-data.md shows each.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from pipeline.exits import exit_with_message
from pipeline.outputs import replacing
from pipeline.refusals import Refusal
from scans.params import Layout
from scans.phantom import write_phantom
from scans.phantom_layouts import write_phantom_volumes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("layout", choices=get_args(Layout))
    parser.add_argument("--patients", type=int, default=24, metavar="N", help="2 or more")
    parser.add_argument("--image-size", type=int, default=128, metavar="PIXELS", help="32 or more")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(argv)
    size = {"seed": asked.seed, "patients": asked.patients, "image_size": asked.image_size}
    if not (2 <= asked.patients <= 9999 and 32 <= asked.image_size <= 4096 and asked.seed >= 0):
        parser.error("--patients is 2 to 9999, --image-size 32 to 4096, --seed 0 or more")
    with exit_with_message("write_phantom"):
        if asked.folder.exists():
            raise Refusal(f"{asked.folder}: is there already; name a new folder")
        with replacing(asked.folder) as [partial]:
            if asked.layout == "slices":
                write_phantom(partial, **size)
            else:
                write_phantom_volumes(partial, layout=asked.layout, **size)
    print(f"{asked.patients} patients in {asked.folder}, layout {asked.layout}")


if __name__ == "__main__":
    main()
