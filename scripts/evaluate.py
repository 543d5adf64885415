"""Adapt to held-out tasks; the same as ``engram evaluate``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
