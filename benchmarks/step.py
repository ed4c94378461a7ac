"""`wmtp bench step` from a clone: `python benchmarks/step.py --json step.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "step", *sys.argv[1:]])
