"""The command line, ``engram train env=... learner=... run=...``.

Hydra composes, ``agent.config`` checks. This module and what it imports stay light, so that help
and configuration errors do not wait for torch.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent.config import ConfigError
from agent.launch import place, processes

COMMANDS = {
    "demo": "the main job: meta-train, evaluate, live through a stream, write a report",
    "train": "meta-train an initialisation on a family of tasks",
    "curves": "learning curves of several meta-training runs on the same axes, and a table",
    "evaluate": "adapt to held-out tasks and tabulate the returns",
    "continual": "live through a stream of visits, with and without memory",
    "streams": "the streams that there are: list, show NAME, preview NAME (schedule and cost)",
    "doctor": "is a stream fit to compare agents on, and do these agents keep the rules?",
    "report": "write a run folder's report.html",
    "compare": "one agent beside others, lifetime by lifetime: differences, intervals, p",
    "power": "how many seeds it takes to find a difference",
    "export": "a run's numbers as CSV and as a LaTeX table",
    "memory": "look after a memory on disk: list, show, export, merge, prune, verify, map",
    "check_env": "is this environment fit to be learned on? findings and suggestions",
    "show_env": "pictures of an environment's tasks and a film of an episode, without a screen",
}
_EXAMPLES = {
    "demo": "engram demo run=runs/demo",
    "train": "engram train env=half_cheetah_dir learner=meta_sgd run=runs/dir "
    "budget.env_steps=1000000",
    "curves": "engram curves runs/maml runs/rl2 out=curves.svg 'lines={oracle: 443}'",
    "evaluate": "engram evaluate run=runs/dir split=heldout",
    "continual": "engram continual stream=cheetah_faults "
    "'agents=[engram,meta_init,finetune]' run=runs/faults",
    "streams": "engram streams preview cheetah_vel   (or list, show NAME)",
    "doctor": "engram doctor stream=cheetah_faults init=runs/demo 'agents=[engram,finetune]'",
    "report": "engram report run=runs/demo",
    "compare": "engram compare runs/faults engram finetune metric=recall.savings",
    "power": "engram power runs/faults metric=recall.savings delta=.1",
    "export": "engram export runs/faults csv=numbers.csv latex=table.tex",
    "memory": "engram memory list runs/demo   (or show, export, import, merge, prune, verify, map)",
    "check_env": "engram check_env --config-dir ~/confs env=my_robot",
    "show_env": "engram show_env env=ant_goal out=pictures",
}
_FOLDER = Path(__file__).resolve().parent
_BAD_CONFIG, _FAILED, _INTERRUPTED = 2, 1, 130
_ELSEWHERE = {
    "memory": "agent.memory_tools",
    "streams": "agent.stream_presets",
    "curves": "agent.curves",
    "doctor": "agent.doctor",
    "compare": "agent.stream_tools",
    "power": "agent.stream_tools",
    "export": "agent.stream_tools",
}
"""Modules of the commands that are not in ``agent.commands``."""
_IN_PROCESSES = {"train"}
"""Commands that torchrun may start in several processes, which divide the work."""
_OF_AGENTS = {"continual", "doctor"}
"""Commands that have a node of settings for each agent."""
_WORDS = {
    "memory": ("action", "folders"),
    "streams": ("action", "stream"),
    "compare": ("run", "agents"),
    "power": ("run", "agents"),
    "export": ("run", "metric"),
    "curves": (None, "runs"),
}
"""Settings that may be given as words: the first word is the one, all others are the other."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 0: done, 1: failed, 2: bad settings, 128 + signal: stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    if command not in COMMANDS:
        print(
            f"error: {command!r} is not a command; expected one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return _BAD_CONFIG
    if {"-h", "--help"} & set(arguments):
        print(_help(command))
        return 0
    try:
        _check_processes(command)
        words, rest = _words(command, arguments[1:])
        config = configure(command, rest) | words
        if "--cfg" in arguments:
            print(OmegaConf.to_yaml(config), end="")
            return 0
        return run_command(command, config, "engram " + shlex.join(arguments))
    except ConfigError as error:
        if place() > 0:  # the first process says the same
            return _BAD_CONFIG
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return _BAD_CONFIG


def run_command(command: str, config: dict[str, Any], typed: str) -> int:
    """Hand the composed configuration to the command's function in ``agent.commands``."""
    commands = importlib.import_module("agent.commands")
    from agent.progress import Stopped

    try:
        module = importlib.import_module(_ELSEWHERE.get(command, "agent.commands"))
        getattr(module, command)(config, typed)
    except Stopped as stopped:
        if place() == 0:
            print(stopped)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("Interrupted. What was saved stays, and the same command goes on from there.")
        return _INTERRUPTED
    except commands.EXPECTED_FAILURES as error:
        where = f"process {place()}: " if place() > 0 else ""
        print(f"error: {where}{error}", file=sys.stderr)
        return _FAILED
    return 0


def _check_processes(command: str) -> None:
    if processes() > 1 and command not in _IN_PROCESSES:
        raise ConfigError(
            f"{command} is no work for {processes()} processes; start it without torchrun"
        )


def configure(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The command's whole configuration as plain data, from the YAML files and the overrides."""
    overrides, search = _split(arguments)
    with initialize_config_module("agent.configs", version_base="1.3"):
        config = _compose(command, [*search, *overrides])
        if command in _OF_AGENTS:
            # Each agent's settings are a node of their own: agent.engram.probe_episodes=3.
            if not isinstance(config["agents"], list):
                raise ConfigError(f"agents={config['agents']!r}: expected a list, such as [engram]")
            nodes = [f"+agent@agent.{name}={name}" for name in config["agents"]]
            config = _compose(command, [*search, *nodes, *overrides])
        return config


def _words(command: str, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``engram memory ACTION FOLDER ...``: what need not be written as key=value, and the rest."""
    if command not in _WORDS:
        return {}, list(arguments)
    rest, (first, others) = list(arguments), _WORDS[command]
    words = [rest.pop(0) for _ in takewhile(_is_word, arguments)]
    if first is None:  # all are
        return ({others: words} if words else {}), rest
    given: dict[str, Any] = {first: words[0]} if words else {}
    if others in _groups():  # a choice among YAML files
        return given, [*(f"{others}={word}" for word in words[1:2]), *rest]
    return given | ({others: words[1:]} if words[1:] else {}), rest


def _is_word(argument: str) -> bool:
    """A path may hold '='; a setting is a name, then '='."""
    return not argument.startswith("-") and not re.match(r"[+~]*[a-z_.]+=", argument)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the search path that ``--config-dir DIR`` stands for."""
    overrides, search, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--cfg":
            continue
        if argument.startswith("--config-dir"):
            _, equals, folder = argument.partition("=")
            folder = folder if equals else (rest.pop(0) if rest else "")
            if not Path(folder).expanduser().is_dir():
                raise ConfigError(f"--config-dir {folder}: no such folder")
            search.append(f"file://{Path(folder).expanduser().resolve()}")
        elif "=" in argument:
            overrides.append(_settable(argument))
        else:
            raise ConfigError(
                f"{argument!r}: expected key=value, --config-dir DIR, --cfg or --help"
            )
    return overrides, [f"hydra.searchpath=[{','.join(search)}]"] if search else []


def _settable(argument: str) -> str:
    """Let a value be set whether the YAML lists it or not; building finds what is no setting."""
    key = argument.partition("=")[0].lstrip("+~")
    if key.split("@")[0] in _groups() or key.startswith("hydra."):
        return argument
    return f"++{argument.lstrip('+')}"


def _compose(command: str, overrides: list[str]) -> dict[str, Any]:
    try:
        config = compose(command, overrides=overrides)
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportReturnType]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_shortened(str(error))) from None


def _shortened(message: str) -> str:
    """Hydra's message without its hints for developers, with the option nearest to a typo."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(
        line for line in lines if "HYDRA_FULL_ERROR" not in line and "See https" not in line
    )
    for group in _groups():
        if f"Could not find '{group}/" in text:
            wrong = text.split(f"Could not find '{group}/")[1].split("'")[0]
            near = difflib.get_close_matches(wrong, _options(group), n=1)
            return (
                f"{group}={wrong}: unknown; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + (f"known are {', '.join(_options(group))} (and what --config-dir adds)")
            )
    return text


def _configs() -> Path:
    """The folder of YAML files: beside the package in a checkout, inside of it in a wheel."""
    spec = importlib.util.find_spec("agent.configs")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the configuration files (agent.configs) are not installed; reinstall engram-rl"
        )
    return Path(spec.origin).parent


def _groups() -> list[str]:
    return sorted(p.name for p in _configs().iterdir() if p.is_dir() and not p.name.startswith("_"))


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (_configs() / group).glob("*.yaml"))


def _overview() -> str:
    rows = [f"  engram {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Engram: a robotics agent that recalls what it has learned before.",
            "",
            *rows,
            "",
            "'engram COMMAND --help' lists the settings of a command. "
            "'python scripts/train.py ...' is the same as",
            "'engram train ...'.",
        ]
    )


def _help(command: str) -> str:
    """What a command does, its settings with their comments, and the choices of every group."""
    settings = (_configs() / f"{command}.yaml").read_text().strip()
    groups = [f"  {group}={'|'.join(_options(group))}" for group in _groups() if group != "agent"]
    return "\n".join(
        [
            f"engram {command}: {COMMANDS[command]}",
            "",
            f"Example:  {_EXAMPLES[command]}",
            "",
            "Settings, as key=value (nested: budget.env_steps=1000000):",
            *[f"  {line}" for line in settings.splitlines()],
            "",
            "Choices:",
            *groups,
            f"  agents=[{','.join(_options('agent'))}]",
            "",
            "  --config-dir DIR   a folder of your own YAML files "
            "(DIR/env/my_robot.yaml gives env=my_robot)",
            "  --cfg              print the composed configuration and stop",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
