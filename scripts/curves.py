"""Draw learning curves of several runs; the same as ``engram curves``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["curves", *sys.argv[1:]]))
