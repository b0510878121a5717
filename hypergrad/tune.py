"""The front door: tune a task, compare it with its baselines, leave a report."""

import contextlib
import hashlib
import inspect
import json
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from hypergrad import earlier, records, registry, space as spaces, static, study, tree
from hypergrad.callbacks import Callback, Listeners, Progress
from hypergrad.checks import check_whole
from hypergrad.estimators import Estimator, average, plan, reverse, shared
from hypergrad.estimators.base import StructuralZeroWarning
from hypergrad.expected import sampled
from hypergrad.groups import alike, fixed, partitioned
from hypergrad.heads import multitask
from hypergrad.judge import judge, validate
from hypergrad.layout import layout_for
from hypergrad.policies import Policy, running_mean
from hypergrad.population import population
from hypergrad.problem import (
    Problem,
    Task,
    check,
    check_diagram,
    check_extras,
    check_snippet,
)
from hypergrad.searchers import Outcome, final_values, warm_start
from hypergrad.settings import BY_GRADIENT, Settings, check_settings, check_used
from hypergrad.sizing import fastest_layout
from hypergrad.storage import (
    FORMAT,
    Folder,
    StudyWarning,
    create,
    lock,
    plain,
    read_json,
    write_json,
)
from hypergrad.study import Study
from hypergrad.train import check_step, init_state, unroll
from hypergrad.tuners import (
    ControllerWarning,
    Tuner,
    bilevel,
    controller,
    descent,
    policy_adam,
    search,
)
from hypergrad.types import HParams, Key, PyTree

UPDATES, WINDOW, DRAWS, CANDIDATES = 5, 10, 4, 4
"""Of "controller": updates of the policy a step, training steps before each, draws a step, outcomes a step."""
ENTROPY_BONUS = 0.003
"""Of "controller", in units of the objective a nat."""
FINALISTS = 10
"""Settings of each method that are trained again before one of them is chosen."""


def tune(
    task: Task | Problem,
    space: PyTree | None = None,
    *,
    horizon: int | None = None,
    storage: str | Path | None = None,
    overwrite: bool = False,
    callbacks: Iterable[Callback] = (),
    details: dict[str, Any] | None = None,
    **settings: Any,
) -> Study:
    """Tune a task, or a problem over a space, judge the result on fresh seeds, and write the study.

    The last settings of a descent, or the best trials of a search, are trained again on the same seeds,
    and the best of them is chosen: the lowest of many noisy values is a lucky one. The default
    hparams, the tuned ones and (for methods by gradient) the best of as many random trials as cost the
    same training time are then trained on fresh seeds; the test set is read then, once.

    Static dimensions of the space (`Integer` and `Choice` with `static=True`, whose values change shapes) are
    for searches: each combination of their values is compiled once, on its first trial, and trained one
    member a device at a time (`chunk` of them side by side). Trials, records and `best` have the values as
    the user named them.

    **Cost:** descent: budget x num_seeds x num_restarts hypergradients, as much again for the random
    baseline, and 11 x max(num_seeds, 4) trainings of each for the choice.

    Args:
        task: what to tune; a `Problem` has no test set, and needs a space and a horizon.
        space: of a `Problem`, a pytree of dimensions.
        horizon: of a `Problem`, its training steps.
        storage: folder of the study; nothing is written where None.
        overwrite: replace a study that is there.
        callbacks: told of every step of every phase.
        details: further entries for `study.json` (the command, the task's arguments).
        **settings: fields of `Settings`: method="random", budget=64, ...

    Returns:
        The study, with `result` (the comparison) and the path of its `report`.

    Raises:
        ValueError: for a task or settings that cannot work, before anything compiles.
    """
    task = as_task(task, space, horizon)
    for name in settings:
        registry.check_name("setting of tune", name, Settings._fields)
    if settings.get("warm_start") is not None:
        settings["warm_start"] = _earlier_folder(settings["warm_start"], storage)
    chosen = check_task(task, Settings(**settings))
    check_used([name for name, value in settings.items() if value is not None], chosen.method)
    listeners = Listeners(callbacks)
    with collected_warnings() as caught:
        chosen = measured(task, chosen)
        built = build(task, chosen)  # what cannot work is refused before an old study is replaced
        if storage is None:
            return complete(task, chosen, built, None, details or {}, listeners, caught)
        with create(storage, overwrite) as folder:
            return complete(task, chosen, built, folder, details or {}, listeners, caught)


def _earlier_folder(directory: Any, storage: Any) -> str:
    """Return the whole path of an earlier study, so that this one is resumed from anywhere."""
    if not isinstance(directory, (str, Path)):
        raise ValueError(
            f"warm_start is {directory!r:.80}, expected the folder of a study; pass e.g. 'runs/digits'"
        )
    path = Path(directory).resolve()
    if storage is not None and path == Path(storage).resolve():
        raise ValueError(
            f"warm_start is {str(directory)!r}, the folder of this study too, expected that of an earlier one; "
            "give this one a folder of its own"
        )
    return str(path)


def as_task(task: Any, space: PyTree | None, horizon: int | None) -> Task:
    """Return a task as it is, and a problem with its space and horizon as a task without a test set."""
    if isinstance(task, Task):
        for name, value in (("space", space), ("horizon", horizon)):
            if value is not None:
                raise ValueError(
                    f"{name} is given with a Task, expected None, because the task has its own; leave it out"
                )
        return task
    if not isinstance(task, Problem):
        raise ValueError(
            f"task is {type(task).__name__}, expected a hypergrad.Task or a Problem; "
            "build one as tasks/digits.py does"
        )
    if space is None or horizon is None:
        missing = "space" if space is None else "horizon"
        raise ValueError(
            f"{missing} is None, expected one with a Problem; pass tune(problem, space, horizon=100)"
        )
    return Task("problem", task, space, check_whole("horizon", horizon), None, "metric", False)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of a study for its report, and raise them again at the end, each once."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        found = [
            (str(w.message), w.category)
            for w in caught
            if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning))
        ]
        for text, category in dict.fromkeys(found):
            warnings.warn(text, category, stacklevel=4)


def complete(
    task: Task,
    settings: Settings,
    built: tuple[Tuner, float],
    folder: Folder | None,
    details: dict[str, Any],
    listeners: Listeners,
    caught: list[warnings.WarningMessage],
    cost: float | None = None,
) -> Study:
    """Do what is left of a study: the method, its random baseline, the comparison and the report.

    Args:
        task: what to tune.
        settings: how, checked.
        built: what `build` made of them.
        folder: of the study, locked; a study that it holds is resumed. Nothing is written where None.
        details: further entries for `study.json`; all of them where the study is resumed.
        listeners: told of every step.
        caught: the warnings raised so far, a list that grows.
        cost: trainings that one step costs, as a study that is resumed has it; measured where None.
    """
    began = time.perf_counter()
    keys = jax.random.split(jax.random.key(settings.seed), 4)
    tune_key, random_key, judge_key, choose_key = keys
    tuner, per_step = built
    if cost is None:
        cost = per_step
        if settings.method in BY_GRADIENT:
            one = _estimator(task, settings) if settings.method == "descent" else tuner
            cost = per_step * measure_ratio(task, one, spaces.default(task.space))
        details = _describe(task, settings, {**details, "cost": cost})
    if folder is not None and not study.has_begun(folder.path):
        # before any listener writes: a folder with a log alone could be neither resumed nor started
        details = study.begin(folder, tune_key, _num_steps(settings), details)
    ended = None
    try:
        listeners.start(details)
        running = time.perf_counter()
        show = _Steps(listeners, settings.method, _num_steps(settings), cost)
        found = _run(tuner, tune_key, folder, details, show)
        earlier = found.seconds - (time.perf_counter() - running)  # in sessions before this one
        baseline = None
        if settings.method in BY_GRADIENT and not found.interrupted:
            num_trials = max(1, round(cost * len(found.outcomes)))
            num_steps, size = _generations(registry.most_trials("random"), num_trials)
            show = _Steps(listeners, "random", num_steps, size)
            about = {"task": task.name, "method": "random"}
            rival = _search(task, Settings("random", population=size, generations=num_steps))[0]
            with _random_folder(folder) as inner:
                baseline = _run(rival, random_key, inner, about, show)

        listeners.step(Progress("judge", 0, 1, found.best_value, found.best_value, {}))
        best, best_value = _choose(task, settings, found, settings.method, choose_key)
        configurations = {"default": spaces.default(task.space), "tuned": best}
        if baseline is not None and baseline.best is not None:
            configurations["random"] = _choose(task, settings, baseline, "random", choose_key)[0]
        judged = judge(task, configurations, judge_key, settings.eval_seeds)
        listeners.step(Progress("judge", 1, 1, found.best_value, found.best_value, {}))
        result = _result(task, settings, found, baseline, judged, cost, best)
        result["warnings"] += _for_report(caught)
        result["seconds"] = time.perf_counter() - began + max(0.0, earlier)
        interrupted = result["interrupted"]
        if found.best is not None:
            found = found._replace(best=best, best_value=best_value)
        ended = found._replace(result=result, interrupted=interrupted)
        if folder is not None:
            _check_result(folder.path / "result.json", result)
            write_json(folder.path / "result.json", result)
            ended = ended._replace(report=_report(folder.path))
        return ended
    finally:
        listeners.end(ended)


def _report(path: Path) -> Path | None:
    """Write the report; a study is not lost because pictures cannot be drawn."""
    from hypergrad.report import report  # matplotlib is loaded for pictures only

    try:
        return report(path)
    except ValueError as error:
        warnings.warn(
            f"no report was written ({error}); write it later: hypergrad report {path}",
            StudyWarning,
            stacklevel=3,
        )
        return None


def _choose(
    task: Task, settings: Settings, found: Study, method: str, key: Key
) -> tuple[HParams, float]:
    """Choose among the finalists of a method by their mean objective over the same seeds."""
    if found.best is None:
        start = spaces.default(task.space)
        return static.restored(task.space, jax.tree.map(np.asarray, start)), float("inf")
    trials = [
        (float(value), jax.tree.map(lambda x, m=m: x[m], o.hparams))
        for o in (found.outcomes[-FINALISTS:] if method in BY_GRADIENT else found.outcomes)
        for m, value in enumerate(final_values(o))
        if np.isfinite(value)
    ]
    finalists = [h for _, h in sorted(trials, key=lambda t: t[0])[:FINALISTS]]
    finalists.append(found.best)
    values = validate(task, finalists, key, max(settings.num_seeds, 4))
    if not np.any(np.isfinite(values)):
        return static.restored(task.space, found.best), found.best_value
    best = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
    return static.restored(task.space, finalists[best]), float(values[best])


def _random_folder(folder: Folder | None):
    """Open the folder of the random baseline, a study of its own within that of the method."""
    if folder is None:
        return contextlib.nullcontext()
    path = folder.path / "random"
    return lock(path) if study.has_begun(path) else create(path)


def _for_report(caught: list[warnings.WarningMessage]) -> list[str]:
    """List structural zeros, and what is odd about the study's folder or machine, each once."""
    kinds = (StructuralZeroWarning, StudyWarning, ControllerWarning)
    return list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, kinds)))


def check_task(task: Task, settings: Settings) -> Settings:
    """Raise a `ValueError` for a task or settings that cannot work, before anything compiles."""
    settings = check_settings(settings)
    registry.check_name("method", settings.method, registry.METHODS)
    registry.check_name("estimator", settings.estimator, registry.ESTIMATORS)
    registry.check_name("bilevel", settings.bilevel, registry.BILEVEL)
    registry.check_name("scheduler", settings.scheduler, registry.SCHEDULERS)
    registry.check_name("response", settings.response, registry.RESPONSES)
    if settings.method == "prior" and not settings.prior:
        raise ValueError(
            "prior is None, expected a belief, which the method 'prior' draws trials from; pass e.g. "
            "--prior lr=1e-3, or prior={'lr': 1e-3}"
        )
    earlier.beliefs(settings, task.space)
    if settings.method in ("descent", "bilevel"):
        spaces.check_differentiable(task.space)
    elif settings.method == "controller":
        spaces.check_traceable(task.space)
    else:
        _check_static(task, settings)
    for hparams in static.corners(task.space):
        label, start = static.split(task.space, hparams)
        one, start = fixed(task, label), jax.tree.map(jax.numpy.asarray, start)
        check(one.problem, start, task.horizon)
        check_step(one.problem, start)
        check_extras(one, jax.tree.map(np.asarray, start))
    return settings


def _check_static(task: Task, settings: Settings) -> None:
    """Raise a `ValueError` for what a search cannot do with static dimensions, naming the first."""
    static.check_named(task.space)
    names = static.static_names(task.space)
    if not names:
        return
    because = f"because space[{names[0]!r}] is static"
    if settings.scheduler == "pb2":
        raise ValueError(
            f"scheduler is 'pb2', expected another {because}: a copy goes on with weights that fit no other "
            "shape; choose 'pbt', whose copies keep their shape, or 'full'"
        )
    if settings.memory is not None:
        raise ValueError(
            f"memory is {settings.memory}, expected None {because}: what fits is measured for one shape; "
            "pass chunk, the members side by side on each device"
        )


def build(task: Task, settings: Settings) -> tuple[Tuner, float]:
    """Build the tuner, and say how many estimates, trainings or steps of its own one of its steps costs."""
    if settings.method == "bilevel":
        return _bilevel_tuner(task, settings), 1
    if settings.method == "controller":
        return _controller_tuner(task, settings), 1
    if settings.method != "descent":
        return _search(task, settings)
    estimator = _estimator(task, settings)
    if settings.num_seeds > 1:
        estimator = average(estimator, settings.num_seeds)
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.budget)
    # hypergradients of noisy trainings ask for a shorter memory of their squares than .999
    optimizer = optax.adam(rate, b2=0.99)
    tuner = descent(
        estimator,
        task.space,
        optimizer=optimizer,
        num_restarts=settings.num_restarts,
        start=earlier.start_of(task, settings),
    )
    return tuner, settings.num_seeds * settings.num_restarts


def _estimator(task: Task, settings: Settings) -> Estimator:
    if settings.memory is None:
        return registry.estimator(settings.estimator, task.problem, task.horizon, task.space)
    if settings.estimator != "reverse":
        raise ValueError(
            f"memory is given with estimator {settings.estimator!r}, expected 'reverse'; leave one out"
        )
    num = settings.num_seeds * settings.num_restarts
    start = spaces.default(task.space)
    chosen = plan(task.problem, start, task.horizon, settings.memory, num_seeds=num)
    return reverse(task.problem, task.horizon, backward=chosen.backward)


def _bilevel_tuner(task: Task, settings: Settings) -> Tuner:
    """Build the tuner whose step trains as long as a run, and moves as far as a step of a descent."""
    method = registry.bilevel_method(settings.bilevel, task.problem)
    num_iterations = max(1, task.horizon // method.num_updates)
    rate = settings.learning_rate / num_iterations
    decay = optax.cosine_decay_schedule(rate, settings.budget * num_iterations)
    return bilevel(
        task.problem,
        task.space,
        num_iterations,
        method=method,
        optimizer=optax.adam(decay),
        num_restarts=settings.num_restarts,
        start=earlier.start_of(task, settings),
    )


def _controller_tuner(task: Task, settings: Settings) -> Tuner:
    """Build the tuner whose real leaves learn by the response, or by credit where it does not see them."""
    policy = multitask(task.space) if task.policy is None else task.policy
    if not isinstance(policy, Policy):
        raise ValueError(
            f"task.policy is {type(policy).__name__}, expected a Policy or None; pass heads.multitask(space)"
        )
    credited = settings.response != "unrolled" and policy.log_density is not None
    scheduled = any(isinstance(d, spaces.Sequence) for d in jax.tree.leaves(task.space))
    estimator = shared(
        task.problem,
        min(WINDOW, task.horizon),
        policy,
        response=registry.response(settings.response),
        draws=sampled(DRAWS),
        credit=running_mean() if credited else None,
        restart_every=task.horizon if scheduled else None,
    )
    # a tenth for each update, and networks ask for smaller steps than coordinates do
    rate = optax.cosine_decay_schedule(settings.learning_rate / 10, settings.budget * UPDATES)
    tuner = controller(
        task.problem,
        policy,
        estimator,
        UPDATES,
        optimizer=policy_adam(rate),
        entropy_bonus=ENTROPY_BONUS,
        num_candidates=CANDIDATES,
    )
    # what cannot work is refused before a study begins
    jax.eval_shape(lambda key: tuner.step(key, tuner.init(key)), jax.random.key(0))
    return tuner


def _search(task: Task, settings: Settings) -> tuple[Tuner, float]:
    num_generations, size = generations(settings)
    num, told = num_generations * size, []
    if settings.warm_start is not None:
        found = earlier.read_trials(settings.warm_start, task.space)
        told.append(earlier.held_trials(found, task.space, settings.warm_start))
        num += len(told[0].values)
    space = spaces.dynamic(task.space)
    searcher = registry.searcher(settings.method, space, num, size, earlier.beliefs(settings))
    searcher = warm_start(searcher, told) if told else searcher
    scheduler, cost = registry.scheduler(
        settings.scheduler, task.problem, task.space, task.horizon, size
    )
    shapes = bool(static.static_names(task.space))
    layout = layout_for(size, settings.devices, settings.chunk, groups=shapes)
    members = one_shape = population(task.problem, layout=layout)
    if shapes:
        members = partitioned(task.problem, task.space, partial(population, layout=layout))
        one_shape = alike(task.problem, task.space)
    tuner = search(members, searcher, scheduler, size, space=task.space)

    def generation(key):
        if not (searcher.host or shapes):
            return tuner.step(key, tuner.init(key))
        keys = jax.random.split(key, size)
        return scheduler(one_shape, key, jax.vmap(partial(spaces.sample, space))(keys))

    jax.eval_shape(generation, jax.random.key(0))  # what cannot be is refused before a study begins
    return tuner, cost


def measured(task: Task, settings: Settings) -> Settings:
    """Return the settings with the chunk of a search that is fastest within its memory, where that is given."""
    if settings.method in BY_GRADIENT or settings.memory is None or settings.chunk is not None:
        return settings
    size = generations(settings)[1]
    num_devices = settings.devices or len(jax.devices())
    keys = jax.random.split(jax.random.key(settings.seed), size)
    hparams = jax.vmap(lambda key: spaces.sample_constant(task.space, key))(keys)
    found = fastest_layout(
        task.problem, hparams, memory=settings.memory, num_devices=num_devices
    ).layout
    return settings._replace(chunk=found.width or -(-size // num_devices))


def _generations(
    most: int, num_trials: int, size: int | None = None, num: int | None = None
) -> tuple[int, int]:
    """Cut trials into equal generations of at most `most`: how many, and how large.

    Together they are less than one trial a generation more.
    """
    if size is None:
        num = -(-num_trials // most) if num is None else num
        return num, -(-num_trials // num)
    return -(-num_trials // size) if num is None else num, size


def _num_steps(settings: Settings) -> int:
    if settings.method in BY_GRADIENT:
        return settings.budget
    return generations(settings)[0]


def generations(settings: Settings) -> tuple[int, int]:
    """Return how many generations a search has, and how many trials each."""
    most = registry.most_trials(settings.method, settings.scheduler)
    return _generations(most, settings.budget, settings.population, settings.generations)


class _Steps:
    """Tells the listeners of the steps of one phase."""

    def __init__(self, listeners: Listeners, phase: str, num_steps: int, cost: float):
        self.listeners = listeners
        self.phase = phase
        self.num_steps = num_steps
        self.cost = cost

    def __call__(self, index: int, outcome: Outcome, best: float) -> None:
        values = final_values(outcome)
        member = int(np.argmin(values))
        hparams = tree.named(jax.tree.map(lambda x: x[member], outcome.hparams))
        record = {n: x[member].item() for n, x in outcome.info.items() if x.shape == values.shape}
        record["trainings"] = self.cost * (index + 1)
        finite = outcome.values[np.isfinite(outcome.values)]
        record["failures"] = len(values) - len(finite)
        record["median"] = float(np.median(finite)) if len(finite) else float("nan")
        lowest = float(values[member])
        self.listeners.step(
            Progress(self.phase, index + 1, self.num_steps, lowest, best, hparams, record)
        )


def _run(tuner: Tuner, key: Key, folder: Folder | None, details: dict, show: _Steps) -> Study:
    """Run a tuner, or go on with the study in the folder, where there is one."""
    if folder is not None and study.has_begun(folder.path):
        return study.resume(tuner, folder, show)
    return study.run(tuner, key, show.num_steps, show, storage=folder, details=details)


def measure_ratio(
    task: Task, one: Estimator | Tuner, hparams: HParams, num_repeats: int = 3
) -> float:
    """Measure the time of one hypergradient, or step, as a multiple of one training run, once compiled."""
    key = jax.random.key(0)

    def train(hparams):
        state = init_state(task.problem, key, hparams)
        return unroll(task.problem, hparams, state, task.horizon).params

    if isinstance(one, Tuner):
        begun = one.init(key)
        programs = (jax.jit(train), lambda _: one.step(key, begun))
    else:
        state = one.init(key, hparams)
        programs = (jax.jit(train), jax.jit(lambda h: one.estimate(key, state, h)))
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(num_repeats + 1):
        for program, seconds in zip(programs, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(hparams))
            if repeat:  # the first call compiles
                seconds.append(time.perf_counter() - began)
    return float(np.median(times[1]) / np.median(times[0]))


def _trace(found: Study, cost: float) -> dict[str, Any]:
    values = [final_values(o) for o in found.outcomes]
    lowest = [float(v.min()) for v in values]
    trace = {
        "trainings": [cost * (i + 1) for i in range(len(lowest))],
        "value": lowest,
        "best": np.minimum.accumulate(lowest) if lowest else [],
    }
    names = ("direct_norm", "response_norm", "adjoint_growth")
    if found.outcomes and all(name in found.outcomes[0].info for name in names):
        members = [int(v.argmin()) for v in values]
        for name in names:
            pairs = zip(found.outcomes, members, strict=True)
            trace[name] = [float(o.info[name][m]) for o, m in pairs]
        trace["skipped"] = int(sum(o.info["skipped"].sum() for o in found.outcomes))
    return trace


def _result(task, settings, found, baseline, judged, cost, best) -> dict[str, Any]:
    notes = []
    trace = _trace(found, cost)
    if trace.get("skipped"):
        notes.append(f"steps that were not finite, and were skipped: {trace['skipped']}")
    refused = sum(int(o.info["refused"].sum()) for o in found.outcomes if "refused" in o.info)
    if refused:
        notes.append(
            f"updates that left the response out, its solve worse than none or not finite: {refused}"
        )
    dropped = sum(int(o.info["dropped"].sum()) for o in found.outcomes if "dropped" in o.info)
    if dropped:
        notes.append(
            f"windows of training dropped because the shared weights diverged: {dropped}; some of the policy's "
            "rates are too large"
        )
    growth = trace.get("adjoint_growth", [])
    if len(growth) and np.nanmax(growth) > 1.05:
        worst = int(np.nanargmax(growth))
        notes.append(
            f"the adjoint grew by {growth[worst]:.3f} a training step at outer step {worst}: training is "
            "near chaos there, and its gradients are hardly useful; lower the learning rates"
        )
    if found.best is None:
        notes.append("no trial had a finite objective; 'tuned' shows the defaults")
    snippet = diagram = None
    try:
        snippet = task.snippet and check_snippet(task.snippet, best)
        diagram = task.diagram and check_diagram(task.diagram, best)
    except ValueError as error:  # it worked for the defaults; a study is not lost because of it
        notes.append(str(error))
    result = {
        "metric": {"name": task.metric, "higher_is_better": task.higher_is_better},
        "objective_name": "validation loss",
        "configurations": judged,
        "trace": trace,
        "snippet": snippet,
        "diagram": diagram,
        "warnings": notes,
        "interrupted": found.interrupted or (baseline is not None and baseline.interrupted),
        "num_seeds": settings.eval_seeds,
        "digest": found.digest,
        "final_digest": _final_digest(found, baseline, judged),
    }
    if baseline is not None:
        result["random_trace"] = _trace(baseline, _width(baseline))
    return result


def _final_digest(found: Study, baseline: Study | None, judged: dict[str, Any]) -> str:
    """Return the SHA-256 of all that was trained: the method, its baseline, and the comparison of them."""
    parts = {
        "version": 1,
        "outcomes": found.digest,
        "random": None if baseline is None else baseline.digest,
        "judged": plain(judged),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_result(path: Path, result: dict[str, Any]) -> None:
    """Raise a `ValueError` where the study is finished already, and did not come out like this.

    Journals are compared step by step, but the comparison at the end has no records.
    """
    try:
        old = read_json(path)
    except (FileNotFoundError, ValueError):
        return  # there is none yet, or it is damaged and made again
    same_outcomes = old.get("digest") == result["digest"] and old.get("interrupted") is False
    digest = old.get("final_digest")
    if same_outcomes and digest is not None and digest != result["final_digest"]:
        raise ValueError(
            f"the finished study was judged again, and its values differ from those in {str(path)!r}, expected "
            "the same bits; resume with the task, data, settings, versions and machine it was started with, or "
            "remove that file to have it judged anew"
        )


def _width(found: Study) -> int:
    return len(found.outcomes[0].values) if found.outcomes else 1


def _describe(task: Task, settings: Settings, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": task.name,
        "task_arguments": {},
        "method": settings.method,
        "settings": settings._asdict(),
        "seed": settings.seed,
        "width": width(settings),
        "horizon": task.horizon,
        "space": {n: repr(d) for n, d in tree.named(task.space).items()},
        "sources": sources(task),
        "versions": records.machine()["versions"],
        "device": str(jax.devices()[0]),
        "command": "hypergrad.tune(...)",
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "description": task.description,
        **earlier.digest_of(task, settings),
        **details,
    }


def width(settings: Settings) -> int:
    """Return how many trials one compiled step makes side by side."""
    if settings.method == "controller":
        return CANDIDATES
    if settings.method in BY_GRADIENT:
        return settings.num_restarts
    return generations(settings)[1]


def sources(task: Task) -> dict[str, str]:
    """Name the files outside this package that define a task, each with its SHA-256.

    Those of its functions, and of the modules that these import, but for installed ones. What the code
    reads, such as data, shows when a resumed study makes a step again.
    """
    modules = [inspect.getmodule(f) for f in (*task.problem, task.test) if callable(f)]
    seen: set[str] = set()
    found: dict[str, str] = {}
    while modules:
        module = modules.pop()
        path = Path(getattr(module, "__file__", None) or "")
        if module is None or module.__name__ in seen or not _is_users(path):
            continue
        seen.add(module.__name__)
        with contextlib.suppress(OSError):
            found[_file_name(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        for value in list(vars(module).values()):
            modules.append(value if inspect.ismodule(value) else inspect.getmodule(type(value)))
            name = getattr(value, "__module__", None)
            modules.append(sys.modules.get(name) if isinstance(name, str) else None)
    return dict(sorted(found.items()))


def _file_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.name == "__init__.py" else path.name


def _is_users(path: Path) -> bool:
    """Tell whether a source file is the user's own: not of this package, of Python, or installed."""
    if path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    places = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
    return not any(path.is_relative_to(place) for place in places)
