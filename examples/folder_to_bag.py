"""Turn a folder of named pictures into a rosbag2 with images and poses, as a robot would have recorded them.

    python examples/folder_to_bag.py site/database recordings/mapping
    python examples/folder_to_bag.py site/queries recordings/live --start-s 2000
    asymvpr demo --source recordings --out site_demo

Pictures are taken in the order of their names, at a fixed rate. The two recordings need start times
further apart than the matcher's `exclude_time_s`, or the mapping lap counts as the recent past.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from asymvpr_core.datasets.folder import FolderDataset
from asymvpr_core.demo.recordings import write_folder_as_bag
from asymvpr_core.errors import AsymvprError


def main() -> int:
    """Write the bag: 0, or 1 with one line for what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images named @utm_e@utm_n@…@.jpg")
    parser.add_argument("bag", type=Path, help="rosbag2 folder to write")
    parser.add_argument("--rate-hz", type=float, default=2.0, help="pictures per second (default 2)")
    parser.add_argument("--start-s", type=float, default=1000.0, help="time of the first picture [s] (default 1000)")
    options = parser.parse_args()
    try:
        write_folder_as_bag(options.bag, FolderDataset(options.folder), rate_hz=options.rate_hz, start_s=options.start_s)
    except AsymvprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
