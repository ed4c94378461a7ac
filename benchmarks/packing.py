"""`wmtp bench packing` from a clone: `python benchmarks/packing.py --json packing.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "packing", *sys.argv[1:]])
