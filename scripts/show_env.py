"""Draw an environment's tasks; the same as ``engram show_env``."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["show_env", *sys.argv[1:]]))
