"""Making Gymnasium environments from a family's settings, with errors that name what is near."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv
from pydantic.dataclasses import dataclass

from envs.param import TaskError

if TYPE_CHECKING:
    from envs.gym_tasks import GymTasks

_MOST_NAMES = 20


@dataclass(kw_only=True, config={"extra": "forbid"})
class Wrapper:
    """A wrapper with arguments."""

    path: str
    """``package.module:Name`` of a class or function that takes the environment first."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Its other arguments."""


def hint(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all if they are few."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= _MOST_NAMES else ""


def make_env(family: GymTasks, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """One environment in the family's wrappers, with its ``kwargs`` and these on top."""
    given = {**family.kwargs, **kwargs}
    return _made(
        family, given, gymnasium.Env, lambda env_id: gymnasium.make(env_id, **given), "entry_point"
    )


def make_vector_env(family: GymTasks, kwargs: Mapping[str, Any], copies: int) -> VectorEnv:
    """One environment of ``copies`` rows that is vectorised itself, made in the same way."""
    given = {**family.kwargs, **kwargs}

    def make(env_id: str) -> VectorEnv:
        mode = "vector_entry_point"
        return gymnasium.make_vec(env_id, copies, vectorization_mode=mode, **given)

    return _made(family, given, VectorEnv, make, "vector_entry_point")


def _made(
    family: GymTasks,
    given: Mapping[str, Any],
    expected: type,
    make: Callable[[str], Any],
    entry_point: str,
) -> Any:
    here = f"{family.name}: cannot make {family.env_id!r}"
    module, _, env_id = family.env_id.rpartition(":")
    _extend_path(family)
    if module:
        _load(module, here, hint(module, _modules(family)))
    with ExitStack() as undo:
        try:
            env = make(env_id)
        except gymnasium.error.UnregisteredEnv as error:
            raise TaskError(f"{here}: {error}{hint(env_id, gymnasium.registry)}") from error
        except TypeError as error:
            known = _arguments(env_id, entry_point)
            wrong = [name for name in given if name not in known]
            near = "".join(hint(name, known) for name in wrong[:1])
            raise TaskError(f"{here}: {error}{near}") from error
        except (gymnasium.error.Error, ImportError) as error:
            raise TaskError(f"{here}: {error}") from error
        undo.callback(env.close)
        for each in family.wrappers:
            wrapper = Wrapper(path=each) if isinstance(each, str) else each
            env = _wrapped(env, wrapper, expected, family.name)
        undo.pop_all()  # nothing failed: keep it open
    return env


def _wrapped(env: Any, wrapper: Wrapper, expected: type, family: str) -> Any:
    here = f"{family}.wrappers: {wrapper.path!r}"
    module, _, name = wrapper.path.replace(":", ".").rpartition(".")
    if not module:
        raise TaskError(f"{here}: expected package.module:Name")
    found = _load(module, here)
    wrap = getattr(found, name, None)
    if not callable(wrap):
        raise TaskError(f"{here}: {module} has no class or function {name!r}" + _near(name, found))
    try:
        wrapped = wrap(env, **wrapper.kwargs)
    except (TypeError, AssertionError, gymnasium.error.Error) as error:
        raise TaskError(f"{here} refuses {env}: {error}") from error
    if not isinstance(wrapped, expected):
        raise TaskError(f"{here} returned {wrapped!r:.100}, expected a {expected.__name__}")
    return wrapped


def _near(name: str, module: Any) -> str:
    return hint(name, (each for each in dir(module) if not each.startswith("_")))


def _extend_path(family: GymTasks) -> None:
    """Append the family's folders, so that they cannot hide an installed package."""
    for folder in family.import_path:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise TaskError(f"{family.name}.import_path: there is no folder {str(path)!r}")
        if str(path) not in sys.path:
            sys.path.append(str(path))


def _modules(family: GymTasks) -> list[str]:
    """Modules in the family's own folders."""
    folders = [Path(folder).expanduser() for folder in family.import_path]
    return [path.stem for folder in folders for path in folder.iterdir() if path.suffix != ".yaml"]


def _load(module: str, here: str, near: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(f"{here}: {error} (import_path: folders to look in){near}") from error


def _arguments(env_id: str, entry_point: str) -> set[str]:
    """Names of the arguments of an environment's constructor and those it passes on."""
    spec = gymnasium.registry.get(env_id)
    entry = getattr(spec, entry_point, None)
    if entry is None:
        return set()
    creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    makers = [each.__init__ for each in creator.__mro__] if inspect.isclass(creator) else [creator]
    names = {name for make in makers for name in inspect.signature(make).parameters}
    return names - {"self", "args", "kwargs", "num_envs"}
