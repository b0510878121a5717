"""`validate`: the functions of a problem or a task are tried once, abstractly, before anything runs."""

import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad.core.cautions import UnreadWarning, warn_unread
from hypergrad.core.types import Variables
from hypergrad.problem import Problem, Task
from hypergrad.space import Choice, Integer, LogReal, Sequence, schedule
from hypergrad.validation import check_step, validate

PROBLEM = Problem(
    init=lambda key, h: jax.random.normal(key, (2, 3)),
    loss=lambda p, h, b: jnp.sum(jnp.square(p - b)),
    objective=lambda p, h, b: jnp.sum(p),
    optimizer=lambda h: optax.sgd(h["lr"], momentum=0.9),
    train_batch=lambda key, step: jax.random.normal(key),
    valid_batch=lambda key: (),
)
H = {"lr": jnp.float32(0.1)}


def a_task(**parts):
    made = Task("small", PROBLEM, {"lr": LogReal(1e-3, 1.0)}, 5, None, "", False)
    return made._replace(**parts)


def test_each_function_is_traced_once_and_batches_twice_and_nothing_is_compiled():
    called, compiled = [], []
    record = called.append  # a method of C, so that no function changes what it closes over

    def counted(name, function):
        def call(*args):
            record(name)
            return function(*args)

        return call

    names = ("init", "loss", "objective", "train_batch", "valid_batch")
    watched = PROBLEM._replace(**{n: counted(n, getattr(PROBLEM, n)) for n in names})

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        validate(watched, H, 10**9)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert Counter(called) == dict.fromkeys(names, 1) | {"train_batch": 2, "valid_batch": 2}
    assert not compiled


def test_state_is_carried():
    def loss(params, h, batch):
        return jnp.sum(params.params), {"n": params.state["n"] + 1}

    init = lambda key, h: Variables(jnp.ones(3), {"n": jnp.zeros((), jnp.int32)})  # noqa: E731
    problem = PROBLEM._replace(
        init=init, loss=loss, objective=lambda p, h, b: jnp.sum(p.params) * p.state["n"]
    )
    validate(problem, H)


def test_a_task_brings_its_defaults_and_every_static_option():
    validate(a_task())
    space = {
        "lr": LogReal(1e-3, 1.0),
        "width": Integer(1, 3, static=True),
        "act": Choice(["a", "b"]),
    }
    seen = set()

    def init(key, h):
        seen.add(h["width"])
        return jnp.ones((h["width"], 2))

    with pytest.warns(UnreadWarning, match=r"hparams\['act'\] is never read"):
        validate(a_task(space=space, problem=PROBLEM._replace(init=init)))
    assert seen == {1, 2, 3}


BAD = {
    "horizon is 0": a_task(horizon=0),
    "space['lr'] is 0.1": a_task(space={"lr": 0.1}),
    "problem is 3": a_task(problem=3),
    "problem.valid_batch is None": a_task(problem=PROBLEM._replace(valid_batch=None)),
    "problem.optimizer failed on the given hparams: hparams or batch has no entry 'lr'": a_task(
        space={"rate": LogReal(1e-3, 1.0)}
    ),
    "problem.optimizer returned an update to params['params'] of shape (4, 2, 3), expected (2, 3)": a_task(
        problem=PROBLEM._replace(optimizer=lambda h: optax.sgd(jnp.ones((4, 1, 1)) * h["lr"]))
    ),
    "problem.train_batch failed on the given hparams: division": a_task(
        problem=PROBLEM._replace(train_batch=lambda key, step: 1 / 0)
    ),
    "problem.train_batch returned a batch of 4.19e+06 GiB": a_task(
        problem=PROBLEM._replace(
            train_batch=lambda key, step: jnp.zeros((2**20, 2**30), jnp.float32)
        )
    ),
    "problem.valid_batch returned a batch of 4.19e+06 GiB": a_task(
        problem=PROBLEM._replace(valid_batch=lambda key: jnp.zeros((2**20, 2**30), jnp.float32))
    ),
    "problem.loss failed": a_task(
        space={"lr": LogReal(1e-3, 1.0), "act": Choice(("sin", "sine"), static=True)},
        problem=PROBLEM._replace(loss=lambda p, h, b: jnp.sum(getattr(jnp, h["act"])(p))),
    ),
}


@pytest.mark.parametrize("fragment", list(BAD))
def test_what_does_not_fit_is_said_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        validate(BAD[fragment])
    message = str(caught.value)
    assert fragment in message and ", expected " in message and "\n" not in message


def test_hyperparameters_without_a_derivative():
    check_step(PROBLEM, H | {"num": 3})
    with pytest.raises(ValueError, match=r"hparams\['num'\] has dtype int\d\d, expected floating"):
        check_step(PROBLEM, H | {"num": 3}, real=True)


def trained_with(optimizer, loss=lambda w, h, b: jnp.sum(w**2)):
    return Problem(
        lambda key, h: jnp.ones(2),
        loss,
        lambda w, h, b: jnp.sum(w),
        optimizer,
        lambda key, step: (),
        lambda key: (),
    )


OUTSIDE = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("problem", "unread"),
    [
        (trained_with(lambda h: optax.sgd(h["lr"])), ["spare"]),
        (trained_with(lambda h: OUTSIDE), ["lr", "spare"]),
        # it acts from the second step on
        (trained_with(lambda h: optax.sgd(h["lr"], h["spare"])), []),
        (trained_with(lambda h: optax.sgd(h["lr"]), lambda w, h, b: jnp.sum(w) * h["spare"]), []),
    ],
)
def test_a_hyperparameter_that_is_never_read_is_named(problem, unread):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        validate(problem, {"lr": 0.1, "spare": 0.5})
    told = [str(w.message) for w in said if issubclass(w.category, UnreadWarning)]
    assert [line.split("'")[1] for line in told] == unread
    assert all("outside" in line for line in told)


@pytest.mark.parametrize(
    ("length", "words"), [(5, "from step 5 on"), (20, "last 10 unread"), (10, "")]
)
def test_a_schedule_of_another_length_than_the_horizon_is_named(length, words):
    space = {"lr": Sequence(LogReal(1e-3, 1.0), length)}
    made = trained_with(lambda h: optax.sgd(schedule(h["lr"])))
    task = a_task(problem=made, space=space, horizon=10)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        validate(task)
    told = [str(w.message) for w in said if issubclass(w.category, UnreadWarning)]
    assert len(told) == bool(words) and all("'lr'" in x and words in x for x in told)


@pytest.mark.parametrize(("length", "words"), [(5, ""), (10, "pass length=horizon // k")])
def test_a_schedule_within_multisteps_has_a_value_for_every_kth_step(length, words):
    """All values after those have a hypergradient of exactly zero."""

    def accumulated(h):
        return optax.MultiSteps(optax.sgd(schedule(h["lr"])), 2).gradient_transformation()

    space = {"lr": Sequence(LogReal(1e-3, 1.0), length)}
    task = a_task(problem=trained_with(accumulated), space=space, horizon=10)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        validate(task)
    told = [str(w.message) for w in said if issubclass(w.category, UnreadWarning)]
    assert len(told) == bool(words) and all(words in line for line in told)


@pytest.mark.parametrize(
    "rate",
    [
        lambda values: lambda step: values[step // 5],
        lambda values: lambda step: jnp.interp(step, jnp.array([0.0, 9.0]), values),
        lambda values: values[0] + values[1],
    ],
)
def test_a_sequence_that_is_no_schedule_may_have_any_length(rate):
    made = trained_with(lambda h: optax.sgd(rate(h["lr"])))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadWarning)
        validate(a_task(problem=made, space={"lr": Sequence(LogReal(1e-3, 1.0), 2)}, horizon=10))


def test_a_hyperparameter_of_one_option_is_read():
    made = trained_with(lambda h: optax.sgd(h["lr"]))
    reads = check_step(made, {"lr": 0.1, "spare": 1.0}).reads
    assert reads == {"lr": True, "spare": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unread([{"lr": False}, {"lr": True}])
