"""Meta-train; the same as ``engram train``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
