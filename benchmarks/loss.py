"""`wmtp bench loss` from a clone: `python benchmarks/loss.py --quick --json loss.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "loss", *sys.argv[1:]])
