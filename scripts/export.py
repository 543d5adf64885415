"""Write a run's numbers to files; the same as ``engram export``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
