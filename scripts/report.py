"""Write a run's report; the same as ``engram report``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
