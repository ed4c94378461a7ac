"""`wmtp bench checkpoint` from a clone: `python benchmarks/checkpoint.py --json checkpoint.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "checkpoint", *sys.argv[1:]])
