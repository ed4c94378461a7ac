"""`wmtp bench faults` from a clone: `python benchmarks/faults.py --kills 20 --json faults.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "faults", *sys.argv[1:]])
