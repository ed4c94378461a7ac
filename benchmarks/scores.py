"""`wmtp bench scores` from a clone: `python benchmarks/scores.py --json scores.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "scores", *sys.argv[1:]])
