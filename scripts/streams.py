"""Look at the streams that there are; the same as ``engram streams``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["streams", *sys.argv[1:]]))
