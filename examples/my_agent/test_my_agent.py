"""Tests of the agent: ``pytest`` in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from my_agent import HillClimber

from agent.config import build
from agent.continual.step_agent import Body, Transition
from agent.continual.testing import AgentContract


class TestMyAgent(AgentContract):
    """What every agent has to keep; the tests are inherited."""

    def make_agent(self) -> Any:
        """As ``conf/agent/my_agent.yaml`` says."""
        text = Path(__file__).with_name("conf").joinpath("agent/my_agent.yaml").read_text()
        return build(yaml.safe_load(text), "agent.my_agent")


def test_it_climbs() -> None:
    """Towards the one action that pays most, 0.5 of the range from -1 to 3: 2."""
    agent = HillClimber()
    agent.setup(Body(1, np.array([-1.0]), np.array([3.0]), horizon=1, seed=0))
    agent.begin(None)
    obs, never, rows = np.zeros((4, 1)), np.zeros(4, dtype=bool), np.arange(4)
    for _ in range(200):
        action = agent.act(obs, deterministic=False)
        reward = -np.abs(action[:, 0] - 2.0)
        agent.observe(Transition(obs, action, reward, obs, never, ~never, rows))
    assert abs(float(agent.act(obs[:1], deterministic=True)[0, 0]) - 2.0) < 0.1
