"""Run the main job; the same as ``engram demo``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
