"""Check an environment; the same as ``engram check_env``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["check_env", *sys.argv[1:]]))
