"""Compare agents, lifetime by lifetime; the same as ``engram compare``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
