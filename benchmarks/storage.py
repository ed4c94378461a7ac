"""`wmtp bench storage` from a clone: `python benchmarks/storage.py --json storage.json`."""

import sys

from wmtp.cli import main

if __name__ == "__main__":
    main(["bench", "storage", *sys.argv[1:]])
