"""`wmtp bench tracking` from a clone: `python benchmarks/tracking.py --json tracking.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "tracking", *sys.argv[1:]])
