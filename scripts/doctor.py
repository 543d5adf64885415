"""Check a stream and agents on it; the same as ``engram doctor``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
