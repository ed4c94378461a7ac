"""`wmtp bench ranks` from a clone: `python benchmarks/ranks.py --json ranks.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "ranks", *sys.argv[1:]])
