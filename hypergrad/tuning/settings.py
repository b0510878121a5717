"""How to tune: the settings, and the options by which the command line and study files give them."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from hypergrad.core.checks import is_number
from hypergrad.searchers import SEARCHERS
from hypergrad.searchers.models.priors import SPREAD

MAX_COUNT = 10**9
"""Largest count that is taken for one."""

BY_GRADIENT = ("descent", "bilevel", "controller")
"""Methods that need hypergradients, and are compared with random search of the same cost; others search."""

ONLY_FOR = {
    "estimator": ("descent",),
    "bilevel": ("bilevel",),
    "response": ("controller",),
    "learning_rate": BY_GRADIENT,
    "num_restarts": ("descent", "bilevel"),
    "prior": (
        "descent",
        "bilevel",
        *(name for name, method in SEARCHERS.items() if "prior" in method.reads),
    ),
}
"""Setting -> the methods that read it."""

NOT_FOR = {
    "warm_start": (
        *(name for name, method in SEARCHERS.items() if "warm_start" not in method.reads),
        "controller",
    )
}
"""Setting -> the methods that do not learn from it; all others do."""

FOR_SEARCH = ("population", "generations", "scheduler", "devices", "chunk")
"""Settings of searches; `memory` is for them and for descent, the others are for all."""


class Settings(NamedTuple):
    """How to tune.

    Attributes:
        method: a name of `tuners.METHODS`, such as "descent" or "random".
        estimator: name of the hypergradient estimator (`estimators.ESTIMATORS`).
        bilevel: which method of "bilevel" (`tuners.BILEVEL_METHODS`).
        response: of the weights in "controller" (`policies.RESPONSES`).
        budget: outer steps for "descent", "bilevel" and "controller", trials for a search (in equal
            generations, so a few more where their size does not divide them); not used where population and
            generations are given.
        seed: of everything.
        learning_rate: of the outer Adam, a step of the budget, decayed to zero by a cosine over the budget.
        num_seeds: seeds averaged in each hypergradient of "descent", 1 for none; where it is more than 4, as
            many seeds choose among the last candidates of any method.
        num_restarts: descents side by side.
        eval_seeds: fresh seeds on which every configuration is judged in the end.
        memory: bytes for the temporaries of one hypergradient by "reverse"; its default scheme where None. For
            a search, those of the members on one device: what fits is measured, and the fastest taken.
        population: trials of a generation of a search; at most 16 (4 for "bayes" and "tpe") where None.
        generations: of a search; as many as make up the budget where None.
        scheduler: how a search spends training on its trials, a name of `schedulers.SCHEDULERS`.
        devices: over which the members of a search are spread; all that jax has where None.
        chunk: members computed side by side on each device, one chunk after another; where None up to four
            on a CPU (one where the space has static dimensions), all on others.
        prior: {leaf name: where its best value is held to be}: a value, a value with its spread as a share of
            the range, or `searchers.Prior(value, spread)`. "prior" draws trials
            from there, "cross_entropy" its first distribution, other searches their first trials; "descent"
            and "bilevel" start at the value.
        warm_start: folder of an earlier study of the same hyperparameters, whose trials a search is told
            before its first, and from whose best a descent starts.
    """

    method: str = "descent"
    estimator: str = "reverse"
    bilevel: str = "soba"
    response: str = "unrolled"
    budget: int = 60
    seed: int = 0
    learning_rate: float = 0.05
    num_seeds: int = 4
    num_restarts: int = 1
    eval_seeds: int = 10
    memory: int | None = None
    population: int | None = None
    generations: int | None = None
    scheduler: str = "full"
    devices: int | None = None
    chunk: int | None = None
    prior: dict[str, Any] | None = None
    warm_start: str | None = None


class Option(NamedTuple):
    """One option of tuning: `--learning-rate` on the command line, `learning_rate` in a study file.

    Attributes:
        name: as in a study file; a setting has the name of its field in `Settings`.
        kind: type of the value; `list` and `dict` stand for several words and for NAME=VALUE pairs.
        text: what it is, for `--help`.
        metavar: what stands for the value in `--help`.
        alias: a shorter flag; empty for none.
    """

    name: str
    kind: type
    text: str
    metavar: str = ""
    alias: str = ""

    @property
    def flag(self) -> str:
        """The option as it stands on the command line."""
        return "--" + self.name.replace("_", "-")


OPTIONS = (
    Option("task", str, "a name from `list`, or file.py:name", "TASK"),
    Option("data", str, "file or folder of the user's data, for tasks that read one", "PATH"),
    Option("label", str, "name of the label column, for tabular tasks", "NAME"),
    Option("horizon", int, "training steps (default: the task's)", "N"),
    Option("arg", dict, "another argument of the task", "NAME=VALUE"),
    Option("method", str, "how to tune, a name from `list`", "NAME"),
    Option("estimator", str, "of the hypergradient, a name from `list`", "NAME"),
    Option("bilevel", str, "of the method 'bilevel': soba, saba or amigo", "NAME"),
    Option("response", str, "of the weights in 'controller': none, unrolled or implicit", "NAME"),
    Option("budget", int, "outer steps, or trials of a search", "N"),
    Option(
        "population",
        int,
        "trials of a generation of a search (default: at most 16, 4 for bayes and tpe)",
        "N",
    ),
    Option("generations", int, "of a search (default: as many as make up the budget)", "N"),
    Option("scheduler", str, "how a search spends training on its trials, from `list`", "NAME"),
    Option(
        "devices", int, "over which a search is spread (default: all, every core of a CPU)", "N"
    ),
    Option("chunk", int, "members of a search computed side by side on each device", "N"),
    Option(
        "prior",
        dict,
        "value near which a hyperparameter is held to be best, within SPREAD of its range (0.15)",
        "NAME=VALUE[:SPREAD]",
    ),
    Option("warm_start", str, "folder of an earlier study, whose trials to begin with", "DIR"),
    Option("seed", int, "of everything", "N"),
    Option("num_seeds", int, "seeds a hypergradient, and of the choice", "N", "--seeds"),
    Option("num_restarts", int, "descents side by side", "N", "--restarts"),
    Option("eval_seeds", int, "fresh seeds to judge every configuration on", "N"),
    Option("learning_rate", float, "of the outer Adam", "RATE"),
    Option(
        "memory",
        int,
        "of one step, or of a search on each device, e.g. 64M (default: 32M a seed, or about sqrt(horizon) "
        "states)",
        "SIZE",
    ),
    Option("out", str, "folder of the study (default runs/TASK)", "DIR"),
    Option("overwrite", bool, "replace the study that is in the folder"),
    Option("log", list, "also write a log: jsonl, tensorboard or wandb; may be repeated", "NAME"),
)

OPTION = {option.name: option for option in OPTIONS}


def check_used(given: Collection[str], method: str, called: Callable[[str], str] = str) -> None:
    """Raise a `ValueError` for a setting that the method would not read: what is given must count.

    Args:
        given: names of the settings that the user gave.
        method: a name of `tuners.METHODS`.
        called: name -> what the user calls it.
    """
    for name in given:
        if wanted := unread(name, method):
            raise ValueError(
                f"{called(name)} is given with method {method!r}, which does not read it, expected {wanted}; "
                "leave it out, or choose another method"
            )
    if {"budget", "population", "generations"} <= set(given):
        raise ValueError(
            f"{called('budget')} is given with population and generations, expected two of the three, which "
            "make up the third; leave one out"
        )


def unread(name: str, method: str) -> str | None:
    """Return what kind of method reads a setting, where this one does not; None where it does."""
    if name in FOR_SEARCH:
        read, wanted = method not in BY_GRADIENT, "a search"
    elif name == "memory":
        read, wanted = method not in ("bilevel", "controller"), "'descent' or a search"
    elif name in NOT_FOR:
        read, wanted = method not in NOT_FOR[name], "one that learns from trials"
    else:
        methods = ONLY_FOR.get(name, (method,))
        read, wanted = method in methods, " or ".join(map(repr, methods))
    return None if read else wanted


def check_option(name: str, value: Any, called: str = "") -> Any:
    """Return the value of an option as `tune` takes it, or raise a `ValueError`.

    A `memory` may be a size such as "64M", and a whole `learning_rate` becomes a float.

    Args:
        name: of the option.
        value: what was given.
        called: what the user calls the option; its name where empty.
    """
    kind, called = OPTION[name].kind, called or name
    if name == "prior":
        return _priors(called, value)
    if name == "memory":
        return _size(called, value)
    if kind is int:
        return _whole(called, value, *((0, 2**32 - 1) if name == "seed" else (1, MAX_COUNT)))
    if kind is float:
        return _positive(called, value)
    if kind is str:
        return _word(called, value)
    if kind is list and isinstance(value, list):
        return [_word(called, item) for item in value]
    if not isinstance(value, kind):
        kinds = {bool: "true or false", list: "a list such as ['jsonl']", dict: "a table"}
        raise ValueError(f"{called} is {_short(value)}, expected {kinds[kind]}; write one")
    return value


def _whole(name: str, value: Any, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(
            f"{name} is {_short(value)}, expected a whole number of at least {lowest}; "
            f"pass e.g. {max(lowest, 10)}"
        )
    if value > highest:
        raise ValueError(
            f"{name} is {_short(value)}, expected at most {highest}; pass a smaller one"
        )
    return value


def _positive(name: str, value: Any) -> float:
    if not is_number(value) or not 0 < value < 1e30:
        raise ValueError(f"{name} is {_short(value)}, expected a positive number; pass e.g. 0.05")
    return float(value)


def _priors(called: str, given: Any) -> dict[str, list]:
    """Return {leaf name: [value, spread]} of a prior as a user gives it."""
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ValueError(
            f"{called} is {_short(given)}, expected values by the names of hyperparameters; "
            'write e.g. {"lr": 1e-3}, or --prior lr=1e-3'
        )
    return {name: _prior(f"{called} for {name!r:.80}", one) for name, one in given.items()}


def _prior(called: str, given: Any) -> list:
    pair = list(given) if isinstance(given, (list, tuple)) else [given, SPREAD]
    value, spread = pair if len(pair) == 2 else (None, 0.0)
    if not is_number(spread) or not 0 < spread <= 1:
        raise ValueError(
            f"{called} is {_short(given)}, expected a value, or a value and its spread, a share of the range "
            "in (0, 1]; write e.g. [1e-3, 0.15], or --prior lr=1e-3:0.15"
        )
    return [getattr(value, "tolist", lambda: value)(), float(spread)]  # of numpy and jax, too


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096 or not value.isprintable():
        raise ValueError(
            f"{name} is {_short(value)}, expected a text of one line; write one in quotes"
        )
    return value


def _size(name: str, value: Any) -> int:
    """Read a size in bytes: a whole number, or a text such as "64M" or "1.5 GiB"."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    size = 0.0
    if isinstance(value, str) and len(value) <= 40:
        units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        number, unit = value.upper().removesuffix("B").removesuffix("I").strip(), ""
        if number and number[-1] in units:
            number, unit = number[:-1], number[-1]
        try:
            size = float(number) * units[unit]
        except ValueError:
            size = 0.0
    if not 1 <= size < 2**63:
        raise ValueError(f"{name} is {_short(value)}, expected a size; pass e.g. 64M or 2G")
    return int(size)


def _short(value: Any) -> str:
    """Show a value in at most 80 characters; Python refuses to write out a number of many digits."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return "a number of thousands of digits"


def check_settings(settings: Settings) -> Settings:
    """Return settings whose every value is possible, or raise a `ValueError` that names the field."""
    if not isinstance(settings, Settings):
        raise ValueError(
            f"settings is {type(settings).__name__}, expected Settings; pass e.g. Settings(budget=60)"
        )
    checked = {}
    for name, value in settings._asdict().items():
        optional = Settings._field_defaults[name] is None
        checked[name] = None if optional and value is None else check_option(name, value)
    return Settings(**checked)
