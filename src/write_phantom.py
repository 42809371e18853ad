"""Write the phantom in one of the layouts that acquire reads, as an example of a data set.

    python src/write_phantom.py phantom-bids bids
    dvc exp run -S 'acquire.dataset="phantom-bids"'

The layouts are slices, brats, bids and nnunet; docs/own-data.md describes them.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

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
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("layout", choices=get_args(Layout))
    parser.add_argument(
        "--patients", type=int, default=24, metavar="N", help="number of patients, 2 to 9999"
    )
    parser.add_argument(
        "--image-size", type=int, default=128, metavar="PIXELS", help="size of slices, 32 to 4096"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    size = {"seed": args.seed, "patients": args.patients, "image_size": args.image_size}
    if not (2 <= args.patients <= 9999 and 32 <= args.image_size <= 4096 and args.seed >= 0):
        parser.error("--patients must be 2 to 9999, --image-size 32 to 4096, --seed 0 or more")
    with exit_with_message("write_phantom"):
        if args.folder.exists():
            raise Refusal(f"{args.folder} already exists; name a new folder")
        with replacing(args.folder) as [partial]:
            if args.layout == "slices":
                write_phantom(partial, **size)
            else:
                write_phantom_volumes(partial, layout=args.layout, **size)
    print(f"{args.patients} patients in {args.folder}, layout {args.layout}")


if __name__ == "__main__":
    main()
