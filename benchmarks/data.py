"""`wmtp bench data` from a clone: `python benchmarks/data.py --json data.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "data", *sys.argv[1:]])
