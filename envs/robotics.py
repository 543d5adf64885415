"""Gymnasium-Robotics by ``env_id: "envs.robotics:FetchReach-v4"``: Fetch, Hand, Maze, Kitchen...

Importing this module registers its environments, mended for current MuJoCo.
"""

from __future__ import annotations

import gymnasium

from envs.compat import import_gymnasium_robotics

gymnasium.register_envs(import_gymnasium_robotics())
