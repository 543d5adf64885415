"""Live through a stream; the same as ``engram continual``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["continual", *sys.argv[1:]]))
