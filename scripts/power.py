"""How many seeds a difference takes; the same as ``engram power``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["power", *sys.argv[1:]]))
