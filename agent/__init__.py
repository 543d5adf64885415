"""Engram: a robotics agent that recalls what it has learned before.

Importing this package is cheap on purpose: torch is paid for by the modules that use it.
"""

from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

__version__ = "0.1.0"


def _refuse_foreign_envs() -> None:
    """Say so at once if another package named ``envs`` stands before ours on the path."""
    spec = _find_spec("envs")
    if spec is None or spec.origin is None:
        raise ImportError(
            "Engram's package 'envs' is missing; "
            "reinstall with: pip install engram-rl (or pip install -e .)"
        )
    theirs, ours = _Path(spec.origin), _Path(__file__)
    if not (theirs.parent / "simulation.py").is_file():
        raise ImportError(
            f"another package named 'envs' at {theirs.parent} shadows Engram's, which belongs "
            f"beside {ours.parent}. Run from another folder, use the 'engram' command instead of "
            "'python -m', or uninstall the distribution 'envs'"
        )


_refuse_foreign_envs()
