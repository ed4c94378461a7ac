"""`wmtp bench decoding` from a clone: `python benchmarks/decoding.py --json decoding.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "decoding", *sys.argv[1:]])
