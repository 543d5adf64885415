"""Look after a memory on disk; the same as ``engram memory``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["memory", *sys.argv[1:]]))
