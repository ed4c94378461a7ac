"""`wmtp bench backends` from a clone: `python benchmarks/backends.py --json backends.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "backends", *sys.argv[1:]])
