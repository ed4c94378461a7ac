"""`wmtp bench sandbox` from a clone: `python benchmarks/sandbox.py --json sandbox.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "sandbox", *sys.argv[1:]])
