"""Every YAML file composes and builds: contract suites that find their subjects by globbing."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli import COMMANDS, configure
from agent.config import build
from agent.continual.cohort import settings_of
from agent.continual.life import Hints
from agent.seeding import generator, torch_generator
from agent.settings import ContinualSettings
from envs.registration import ids
from envs.task import TaskDistribution
from envs.testing import FamilyContract

CONFIGS = Path(__file__).parent.parent / "configs"


def names(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    assert found, f"no configs in {group}"
    return found


def family(name: str) -> TaskDistribution:
    return build(configure("train", [f"env={name}"])["env"], "env")


def test_every_yaml_file_belongs_to_a_suite():
    groups = {"env", "learner", "agent", "stream", "experiment"}
    for path in CONFIGS.rglob("*.yaml"):
        relative = path.relative_to(CONFIGS)
        assert relative.parts[0] in groups or relative.stem in COMMANDS, relative
        assert path.read_text().startswith("#"), f"{relative} does not begin by saying what it is"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_compose(command: str):
    assert {"run", "runs", "env", "folders", "action"} & set(configure(command, []))


class TestFamilies(FamilyContract):
    """Every family of ``configs/env`` keeps the contract that users' own are held to."""

    name = ""

    @pytest.fixture(params=names("env"), autouse=True)
    def _named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param
        if needed := self.make_family().missing():
            pytest.skip(needed)

    def make_family(self) -> TaskDistribution:
        """As the YAML file says."""
        return family(self.name)


VERBS = "setup begin improve end actor memory_facts save_memory state_dict load_state_dict".split()


@pytest.mark.parametrize("name", names("agent"))
def test_agents_build(name: str):
    config = build(configure("continual", [f"agents=[{name}]"]), "", ContinualSettings)
    built = build(config.agent[name], f"agent.{name}")
    assert all(callable(getattr(built, verb)) for verb in VERBS)
    assert isinstance(built.needs, Hints)
    assert settings_of(built)["_target_"] == config.agent[name]["_target_"]
    for node in ("key", "reader"):
        if hasattr(built, node):
            build(getattr(built, node), node)


def test_the_seeds_of_purposes_are_independent():
    draws = {
        purpose: generator(0, purpose).integers(2**60)
        for purpose in (
            "init",
            "train",
            "calibration",
            "tasks",
            "evaluation",
            "adaptation",
            "stream",
            "visit",
        )
    }
    assert len(set(draws.values())) == len(draws)
    assert generator(0, "train", 1).integers(2**60) != generator(0, "train", 2).integers(2**60)
    assert torch_generator(1, "init").initial_seed() == torch_generator(1, "init").initial_seed()


def test_every_family_is_a_yaml_file_and_an_id():
    """The two ways in stand for the same class and the same settings."""
    for name, settings in ids().items():
        made = settings["name"]
        if made.endswith("_fast") and made not in names("env"):
            continue  # a YAML for some of them; env.integrator=implicitfast for all
        module, _, cls = settings["family"].partition(":")
        built = family(made)
        assert f"{type(built).__module__}:{type(built).__name__}" == f"{module}:{cls}", name
        assert built.name == made
        assert getattr(built, "integrator", None) == settings.get(
            "integrator", getattr(type(built), "integrator", None)
        )
    native = {type(family(name)).__name__ for name in names("env")}
    listed = {s["family"].partition(":")[2] for s in ids().values()}
    assert native - listed == {"GymTasks", "MetaWorld", "HalfCheetah", "Ant"}


@pytest.mark.parametrize("name", [n for n in names("env") if "_dir_" not in n])
def test_a_variant_brings_all_of_its_settings(name: str):
    """A YAML file's own settings must not stand in the way of what was published."""
    for variant, settings in getattr(type(family(name)), "VARIANTS", {}).items():
        chosen = build(configure("train", [f"env={name}", f"env.variant={variant}"])["env"], "env")
        for key, value in settings.items():
            if key not in ("params", "observation"):
                assert getattr(chosen, key) == value or dict(getattr(chosen, key)) == value
        assert "horizon" in settings and chosen.variant == variant
