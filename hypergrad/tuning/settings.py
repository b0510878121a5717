"""The settings of tuning, and the options by which the command line and study files give them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from hypergrad.core.checks import check_name, describe, is_number, is_whole

MAX_COUNT = 10**9
"""Largest count of an option."""

MAX_DEVICES = 1024
"""Largest number of devices that a flag or a file may ask for; no machine has more cores."""

MAX_SEED = 2**32 - 1
"""Largest seed that fits into a key of jax."""


class Settings(NamedTuple):
    """Settings of tuning.

    Attributes:
        method: Name of a method (`tuners.METHODS`), such as "descent" or "random".
        estimator: Name of the hypergradient estimator (`estimators.ESTIMATORS`).
        bilevel: Name of the updates of "bilevel" (`tuners.BILEVEL_METHODS`).
        response: Name of the response of the weights in "controller" (`policies.RESPONSES`).
        budget: Outer steps for "descent", "bilevel" and "controller", trials for a search (in equal
            generations, so a few more where their size does not divide them); not used where population and
            generations are given.
        seed: Seed of every random draw.
        scout: Share of the budget of "descent" that a search of constant settings takes before it, from whose
            best it starts; where None 30 %, or nothing for fewer than 20 steps, an online estimator, and
            where `prior` or `warm_start` say where to start.
        learning_rate: Rate of the outer Adam for a step of the budget; it decays to zero by a cosine over the
            budget.
        num_seeds: Seeds averaged in each hypergradient of "descent", 1 for none; where it is more than 4, as
            many seeds choose among the last candidates of any method.
        num_restarts: Number of descents side by side.
        eval_seeds: Number of fresh seeds on which every configuration is judged in the end.
        memory: Bytes for the temporaries of one hypergradient by "reverse"; its default scheme where None. For
            a search, those of the members on one device: the widest chunk that fits is taken, and recorded.
        population: Trials of a generation of a search; as suits the method, at most 16, where None.
        generations: Number of generations of a search; as many as make up the budget where None.
        scheduler: Name of the way in which a search spends training on its trials (`schedulers.SCHEDULERS`).
        devices: Number of devices over which the members of a search are spread; all that jax has where None.
        chunk: Number of members computed side by side on each device, one chunk after another; where None up
            to four on a CPU (one where the space has static dimensions), all on others.
        prior: Dict {leaf name: likely place of its best value}: a value, a value with its spread as a share of
            the range, or `searchers.Prior(value, spread)`. "prior" draws trials from there,
            "cross_entropy" its first distribution, other searches their first trials; "descent" and
            "bilevel" start at the value.
        warm_start: Folder of an earlier study of the same hyperparameters, whose trials a search learns before
            its first trial, and whose best trial is the start of a descent.
    """

    method: str = "descent"
    estimator: str = "reverse"
    bilevel: str = "soba"
    response: str = "unrolled"
    budget: int = 60
    seed: int = 0
    scout: float | None = None
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
        name: Key in a study file; a setting has the name of its field in `Settings`.
        kind: Type of the value; `list` and `dict` stand for several words and for NAME=VALUE pairs.
        text: Description for `--help`.
        metavar: Word that stands for the value in `--help`.
        alias: Shorter flag; empty where there is none.
    """

    name: str
    kind: type
    text: str
    metavar: str = ""
    alias: str = ""

    @property
    def flag(self) -> str:
        """Return the option as it stands on the command line."""
        return "--" + self.name.replace("_", "-")


OPTIONS = (
    Option("task", str, "name of the task, from `list`, or file.py:name", "TASK"),
    Option("data", str, "file or folder of the user's data, for tasks that read one", "PATH"),
    Option("label", str, "name of the label column, for tabular tasks", "NAME"),
    Option("horizon", int, "training steps (default: the task's)", "N"),
    Option("arg", dict, "another argument of the task", "NAME=VALUE"),
    Option("method", str, "name of the method, from `list`", "NAME"),
    Option("estimator", str, "name of the hypergradient estimator, from `list`", "NAME"),
    Option("bilevel", str, "name of the updates of the method 'bilevel', from `list`", "NAME"),
    Option(
        "response",
        str,
        "name of the response of the weights in 'controller', from `list`",
        "NAME",
    ),
    Option("budget", int, "outer steps, or trials of a search", "N"),
    Option(
        "population",
        int,
        "trials of a generation of a search (default: as suits the method, at most 16)",
        "N",
    ),
    Option(
        "generations", int, "generations of a search (default: as many as make up the budget)", "N"
    ),
    Option(
        "scheduler",
        str,
        "name of the way a search spends training on its trials, from `list`",
        "NAME",
    ),
    Option(
        "devices",
        int,
        "devices over which a search is spread (default: all, every core of a CPU)",
        "N",
    ),
    Option("chunk", int, "members of a search computed side by side on each device", "N"),
    Option(
        "prior",
        dict,
        "value near which a hyperparameter is held to be best, within SPREAD of its range (0.15)",
        "NAME=VALUE[:SPREAD]",
    ),
    Option("warm_start", str, "folder of an earlier study, whose trials to begin with", "DIR"),
    Option("seed", int, "seed of every random draw", "N"),
    Option(
        "num_seeds",
        int,
        "seeds averaged in a hypergradient, and seeds of the choice",
        "N",
        "--seeds",
    ),
    Option("num_restarts", int, "descents side by side", "N", "--restarts"),
    Option("eval_seeds", int, "fresh seeds to judge every configuration on", "N"),
    Option(
        "scout",
        float,
        "share of a descent's budget for a search of its start (default: 0.3 from 20 steps on)",
        "SHARE",
    ),
    Option("learning_rate", float, "rate of the outer Adam", "RATE"),
    Option(
        "memory",
        int,
        "bytes for one step, or for a search on each device, e.g. 64M (default: 32M a seed, or about "
        "sqrt(horizon) states)",
        "SIZE",
    ),
    Option("out", str, "folder of the study (default runs/TASK)", "DIR"),
    Option("overwrite", bool, "replace the study that is in the folder"),
    Option("log", list, "name of an additional log, from `list`; may be repeated", "NAME"),
)

OPTION = {option.name: option for option in OPTIONS}


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4096 and value.isprintable()


class _Form(NamedTuple):
    fits: Callable[[Any], bool]
    expected: str


_FORMS: dict[type | str, _Form] = {
    int: _Form(
        lambda x: is_whole(x) and 1 <= x <= MAX_COUNT,
        f"a whole number of at least 1 and at most {MAX_COUNT}; pass e.g. 10",
    ),
    "seed": _Form(
        lambda x: is_whole(x) and 0 <= x <= MAX_SEED,
        f"a whole number of at least 0 and at most {MAX_SEED}; pass e.g. 0",
    ),
    "devices": _Form(
        lambda x: is_whole(x) and 1 <= x <= MAX_DEVICES,
        f"a whole number of at least 1 and at most {MAX_DEVICES}; leave it out to use all",
    ),
    "memory": _Form(
        lambda x: is_whole(x) and 0 < x < 2**63, "a size in bytes; pass e.g. 64M or 2G"
    ),
    "scout": _Form(
        lambda x: is_number(x) and 0 <= x < 1, "a share in [0, 1); pass e.g. 0.3, or 0 for none"
    ),
    float: _Form(lambda x: is_number(x) and 0 < x < 1e30, "a positive number; pass e.g. 0.05"),
    str: _Form(_is_line, "a text of one line; write one in quotes"),
    list: _Form(
        lambda x: isinstance(x, list) and all(map(_is_line, x)),
        "a list such as ['jsonl']; write one",
    ),
    dict: _Form(lambda x: isinstance(x, dict), "a table; write one"),
    bool: _Form(lambda x: isinstance(x, bool), "true or false; write one"),
    "prior": _Form(
        lambda x: isinstance(x, dict) and all(isinstance(name, str) for name in x),
        'values by the names of hyperparameters; write e.g. {"lr": 1e-3}, or --prior lr=1e-3',
    ),
}
"""{name or kind of an option: the form of its value}."""


_COMPANIONS = {
    "method": ("method", ""),
    "scheduler": ("scheduler", "random"),
    "estimator": ("estimator", "descent"),
    "bilevel": ("update of the method 'bilevel'", "bilevel"),
    "response": ("response of the method 'controller'", "controller"),
    "log": ("log", ""),
}
"""Option -> what its names stand for, and a method that reads it; empty where all do."""


def check_choice(
    option: str,
    name: str,
    known: Mapping[str, Collection[str]],
    called: Callable[[str], str] = str,
) -> None:
    """Raise a `ValueError` unless an option may have a name; one of another option is sent there.

    Args:
        option: Name of the option.
        name: Value that the user gave.
        known: Dict {option: the names it may have}.
        called: Function from the name of an option to what the user calls it.
    """

    def written(one: str, value: str) -> str:
        return f"{called(one)} {value}" if called(one).startswith("-") else f"{one}={value!r}"

    for other in () if name in known[option] else _COMPANIONS:
        if name in known.get(other, ()):
            kind, method = _COMPANIONS[other]
            rest = f" with a method that reads it, such as {written('method', method)}"
            article = "an" if kind[0] in "aeiou" else "a"
            raise ValueError(
                f"{called(option)} is {name!r}, {article} {kind}, expected one of {', '.join(known[option])}; "
                f"pass {written(other, name)}{rest if method else ''}"
            )
    check_name(called(option), name, known[option])


def check_options(
    given: Mapping[str, Any],
    called: Callable[[str], str] = str,
    known: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """Return options as `tune` takes them, or raise a `ValueError` for the first invalid one.

    A `memory` may be a size such as "64M", a whole `learning_rate` becomes a float, and a `prior` becomes
    {leaf name: [value, spread]}.

    Args:
        given: Values by the names of options.
        called: Function from the name of an option to the user's name for it.
        known: Dict {option: the names it may have}, for options whose values are names.
    """
    found = {}
    for name, value in given.items():
        kind = OPTION[name].kind
        read: Any = _bytes(value) if name == "memory" else value
        form = _FORMS.get(name) or _FORMS[kind]
        if not form.fits(read):
            raise ValueError(f"{called(name)} is {_short(value)}, expected {form.expected}")
        names = (known or {}).get(name, ())
        words = read if kind is list else [read]
        unknown = [word for word in words if names and word not in names]
        if unknown:
            check_choice(name, unknown[0], known or {}, called)
        if name == "prior":
            read = {
                leaf: _pair(f"{called(name)} for {leaf!r:.80}", one) for leaf, one in read.items()
            }
        found[name] = kind(read) if kind in (int, float) else read
    return found


def _pair(called: str, given: Any) -> list:
    """Return the value and the spread of a prior; the spread is that of `Prior` where none is given."""
    from hypergrad.searchers.models.priors import SPREAD

    pair = list(given) if isinstance(given, (list, tuple)) else [given, SPREAD]
    if len(pair) != 2 or not is_number(pair[1]) or not 0 < pair[1] <= 1:
        raise ValueError(
            f"{called} is {_short(given)}, expected a value, or a value and its spread, a share of the range "
            "in (0, 1]; write e.g. [1e-3, 0.15], or --prior lr=1e-3:0.15"
        )
    value, spread = pair
    return [getattr(value, "tolist", lambda: value)(), float(spread)]  # also numpy and jax


def _bytes(value: Any) -> Any:
    """Return the bytes of a size such as "64M" or "1.5 GiB"; return other values as they are."""
    if not isinstance(value, str) or len(value) > 40:
        return value
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number = value.upper().removesuffix("B").removesuffix("I").strip()
    unit = units.get(number[-1:], 1)
    try:
        return int(float(number[:-1] if unit > 1 else number) * unit)
    except (ValueError, OverflowError):
        return value


def _short(value: Any) -> str:
    """Show a value in at most 80 characters; Python refuses to write out a number of many digits."""
    try:
        return describe(value)
    except ValueError:
        return "a number of thousands of digits"


def check_settings(
    given: Mapping[str, Any], known: Mapping[str, Collection[str]] | None = None
) -> Settings:
    """Return the settings that a user gives, or raise a `ValueError` that names the first invalid one.

    Args:
        given: Values by the names of fields; a None stands for the default.
        known: Dict {field: the names it may have}.
    """
    unknown = [name for name in given if name not in Settings._fields]
    if unknown:
        check_name("setting of tune", unknown[0], Settings._fields)
    usual = Settings._field_defaults
    chosen = {n: v for n, v in given.items() if v is not None or usual[n] is not None}
    return Settings(**check_options(chosen, known=known))


def scout_steps(settings: Settings) -> int:
    """Return how many steps of the budget of a descent its scout takes."""
    return round((settings.scout or 0.0) * settings.budget)
