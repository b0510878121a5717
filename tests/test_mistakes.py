"""Mistakes of new users: each is one line that says what was got, what was expected and what to do."""

import math
import sys
import warnings
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

import hypergrad as hg
from hypergrad.cli import main as cli
from hypergrad.estimators import reverse
from hypergrad.problem import check_problem

ROOT = Path(__file__).parent.parent
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)
FRAME, DEVICE = pd.DataFrame(X), (jnp.asarray(X), jnp.asarray(Y))
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
NET = nn.Dense(1)
SPACE = {"lr": hg.LogReal(1e-3, 1.0), "l2": hg.LogReal(1e-4, 1.0)}
H = {"lr": jnp.float32(0.1), "l2": jnp.float32(0.01)}
KEY = jax.random.key(0)


def good(params, hparams, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2) + hparams["l2"] * jnp.sum(params["w"] ** 2)


def rows(key):
    return jax.random.randint(key, (8,), 0, 64)


def drawn(key, step):
    return jax.tree.map(lambda a: a[rows(key)], DEVICE)


PROBLEM = hg.Problem(
    init=lambda key, h: {"w": jnp.zeros(4)},
    loss=good,
    objective=lambda p, h, b: good(p, {"l2": 0.0}, b),
    optimizer=lambda h: optax.sgd(h["lr"]),
    train_batch=drawn,
    valid_batch=lambda key: DEVICE,
)


def tune(space=SPACE, horizon=3, method="random", settings=None, **parts):
    """A first call of the library, with some parts that are mistaken."""
    made = PROBLEM._replace(**parts)
    return lambda: hg.tune(made, space, horizon=horizon, method=method, **(settings or {}))


def task():
    return hg.Task("mistaken", PROBLEM, SPACE, 3, None, "", True)


def estimate(key=KEY, hparams=H, **parts):
    return lambda: reverse(PROBLEM._replace(**parts), 3).estimate(key, (), hparams)


def added(**dims):
    return {**SPACE, **dims}


class Plain:
    """Weights in a class that jax does not know."""

    def __init__(self):
        self.w = jnp.zeros(4)


def set_in_place(key, h):
    w = jnp.zeros(4)
    w[0] = 1.0
    return {"w": w}


def static_argument(h):
    twice = jax.jit(lambda x: 2 * x, static_argnums=0)
    return optax.sgd(twice(h["lr"]))


def logits(p, b):
    return b[0] @ (jnp.ones((4, 2)) * p["w"][:, None])


MISTAKES = {
    # data and numbers that are not those of jax
    "numpy data, traced index": (
        tune(train_batch=lambda key, step: (X[rows(key)], Y[rows(key)])),
        ("problem.train_batch failed", "test_mistakes.py, line", "X is a ndarray of numpy", "jnp.asarray(X)"),
    ),
    "numpy data, a slice": (
        tune(train_batch=lambda key, step: (X[step : step + 8], Y[:8])),
        ("X is a ndarray of numpy", "jax.lax.dynamic_slice_in_dim"),
    ),
    "a traced slice": (
        tune(train_batch=lambda key, step: tuple(a[step : step + 8] for a in DEVICE)),
        ("Slice entries must be static", "use jax.lax.dynamic_slice_in_dim"),
    ),
    "a DataFrame, traced index": (
        tune(train_batch=lambda key, step: (FRAME.iloc[rows(key)], Y)),
        ("FRAME is a DataFrame of pandas", "jnp.asarray(FRAME.to_numpy())"),
    ),
    "a DataFrame as a batch": (
        tune(train_batch=lambda key, step: (FRAME, Y)),
        ("it returned a pandas.DataFrame", "return jnp.asarray(frame.to_numpy())"),
    ),
    "numpy on a traced value": (
        tune(optimizer=lambda h: optax.sgd(np.sqrt(h["lr"]))),
        ("problem.optimizer failed", "call jnp where that line calls numpy"),
    ),
    "float of a traced value": (
        tune(optimizer=lambda h: optax.sgd(float(h["lr"]))),
        ("use the value without float(...)",),
    ),
    "math of a traced value": (
        tune(optimizer=lambda h: optax.sgd(math.exp(-h["lr"]))),
        ("use jnp for math.exp",),
    ),
    "item of a traced value": (
        estimate(optimizer=lambda h: optax.sgd(h["lr"].item())),
        ("use the value without item(...)",),
    ),
    "numpy's generator, seeded by the step": (
        tune(train_batch=lambda key, step: DEVICE[0][np.random.default_rng(step).integers(0, 64, 8)]),
        ("problem.train_batch failed", "draw with jax.random and the key"),
    ),
    "a key made into a key": (
        tune(init=lambda key, h: {"w": jax.random.normal(jax.random.PRNGKey(key), (4,))}),
        ("was given a PRNG key", "use the key itself"),
    ),
    # control flow and shapes
    "if on a traced value": (
        tune(optimizer=lambda h: optax.sgd(h["lr"] if h["lr"] < 0.5 else 0.5)),
        ("decide with jnp.where or jax.lax.cond",),
    ),
    "range of a traced count": (
        tune(added(n=hg.Integer(1, 3)), loss=lambda p, h, b: sum(good(p, h, b) for _ in range(h["n"]))),
        ("use jax.lax.fori_loop", "static=True"),
    ),
    "a traced shape": (
        tune(added(n=hg.Integer(4, 5)), init=lambda key, h: {"w": jnp.zeros(h["n"])}),
        ("a shape depends on a hyperparameter", "static=True"),
    ),
    "an assignment in place": (tune(init=set_in_place), ("write x = x.at[index].set(value)",)),
    "a mask as an index": (
        tune(loss=lambda p, h, b: jnp.mean(logits(p, b)[b[1] > 0])),
        ("jnp.where(mask, values, 0)",),
    ),
    "a static argument of jit": (
        tune(optimizer=static_argument),
        ("`return optax.sgd(twice(h[\"lr\"]))`", "leave it out of static_argnums"),
    ),
    "a printed format": (
        tune(loss=lambda p, h, b: good(p, h, b) + len(f"{h['lr']:.3f}")),
        ("print with jax.debug.print",),
    ),
    # choices
    "a choice as a name": (
        tune(added(act=hg.Choice(("relu", "tanh"))), loss=lambda p, h, b: ACTIVATIONS[h["act"]](good(p, h, b))),
        ("a Choice is the traced index of its option", "hg.select"),
    ),
    "a choice as a place in a list": (
        tune(added(act=hg.Choice((0, 2))), loss=lambda p, h, b: [good, good][h["act"]](p, h, b)),
        ("a list has no traced index", "hg.select(index, values)"),
    ),
    # losses
    "a loss for each example": (
        tune(loss=lambda p, h, b: (b[0] @ p["w"] - b[1]) ** 2),
        ("problem.loss returned an array of shape (8,)", "jnp.mean(...)"),
    ),
    "a loss and its metrics": (
        tune(loss=lambda p, h, b: (good(p, h, b), {"accuracy": 0.0})),
        ("problem.loss returned a tuple of 2, expected one real number", "hypergrad.Variables"),
    ),
    "a loss and no state": (
        tune(loss=lambda p, h, b: (good(p, h, b), None)),
        ("problem.loss returned a tuple of 2, expected its value alone",),
    ),
    "an accuracy that is a count": (
        tune(objective=lambda p, h, b: jnp.sum(b[1])),
        ("problem.objective returned an array of shape () and dtype int",),
    ),
    "nothing returned": (tune(loss=lambda p, h, b: None), ("problem.loss returned None",)),
    "one-hot labels": (
        tune(
            loss=lambda p, h, b: jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(logits(p, b), jax.nn.one_hot(b[1], 2))
            )
        ),
        ("problem.loss failed", "jnp.argmax(labels, -1) of one-hot labels"),
    ),
    "labels that are not one-hot": (
        tune(loss=lambda p, h, b: jnp.mean(optax.softmax_cross_entropy(logits(p, b), b[1]))),
        ("pass one-hot labels there: jax.nn.one_hot",),
    ),
    # functions of other arguments
    "an init without a key": (
        tune(init=lambda h: {"w": jnp.zeros(4)}),
        ("problem.init is a function of (h), expected a function of (key, hparams)",),
    ),
    "swapped batches": (
        tune(train_batch=lambda key: DEVICE, valid_batch=drawn),
        ("problem.train_batch is a function of (key), expected a function of (key, step)",),
    ),
    "data in the place of a batch": (
        tune(valid_batch=DEVICE),
        ("problem.valid_batch is", "expected a function of (key); write valid_batch=lambda key: ..."),
    ),
    "swapped params and hparams": (
        tune(loss=lambda hparams, params, batch: good(params, hparams, batch)),
        ("no entry 'w'", "and not as (hparams, params, batch)"),
    ),
    "the batch before the hparams": (
        tune(loss=lambda params, batch, hparams: good(params, hparams, batch)),
        ("its arguments come as (params, hparams, batch), and not as (params, batch, hparams)",),
    ),
    "the batch first": (
        tune(
            objective=lambda batch, params, hparams: jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)
        ),
        ("its arguments come as (params, hparams, batch), and not as (batch, params, hparams)",),
    ),
    "the step before the key": (
        tune(train_batch=lambda step, key: drawn(key, step)),
        ("its arguments come as (key, step), and not as (step, key)",),
    ),
    "the hparams before the key": (
        tune(init=lambda hparams, key: {"w": jax.random.normal(key, (4,))}),
        ("its arguments come as (key, hparams), and not as (hparams, key)",),
    ),
    "a loss of optax": (
        tune(loss=optax.l2_loss),
        ("problem.loss is a function of (predictions, targets), expected",),
    ),
    "an optimizer that is made": (
        tune(optimizer=optax.sgd(0.1)),
        ("problem.optimizer is", "write optimizer=lambda hparams: optax.sgd(hparams['lr'])"),
    ),
    "an optimizer's factory": (
        tune(optimizer=optax.sgd),
        ("problem.optimizer failed", "lambda hparams: optax.sgd(hparams['lr'])"),
    ),
    "a schedule of optax": (
        tune(optimizer=lambda h: optax.sgd(optax.warmup_cosine_decay_schedule(0.0, h["lr"], 1, 3))),
        ("optax's schedules refuse traced values", "hg.schedules.warmup_cosine"),
    ),
    "a sequence as a rate": (
        tune({**SPACE, "lr": hg.Sequence(SPACE["lr"], 3)}),
        ("hparams['lr'] is a schedule", "hg.schedule("),
    ),
    # weights
    "a module of flax": (
        tune(init=NET.init),
        ("problem.init is of the module Dense of flax", "hg.from_linen(module)"),
    ),
    "a class that is no pytree": (
        tune(init=lambda key, h: Plain()),
        ("it returned a", "Plain", "register_dataclass"),
    ),
    "a text among the weights": (
        tune(init=lambda key, h: {"w": jnp.zeros(4), "name": "net"}),
        ("it returned a str", "keep texts outside"),
    ),
    "whole numbers among the weights": (
        tune(init=lambda key, h: {"w": jnp.zeros(4), "n": jnp.zeros((), jnp.int32)}),
        ("params['n'] has dtype int32", "Variables(params, state)"),
    ),
    # spaces and settings
    "a hyperparameter that is not in the space": (
        tune({"lr": SPACE["lr"]}),
        ("no entry 'l2'", "the hparams are lr"),
    ),
    "an attribute of the hparams": (
        tune(loss=lambda p, h, b: good(p, h, b) * h.scale),
        ("has no attribute 'scale'", "as hparams['lr']"),
    ),
    "a pair as a range": (
        tune({"lr": (1e-3, 1.0)}),
        ("space['lr.0'] is 0.001, expected a dimension", "write LogReal(low, high)"),
    ),
    "an array as options": (
        tune(added(lr=np.logspace(-3, 0, 5))),
        ("space['lr'] is an array of shape (5,)", "Choice(options)"),
    ),
    "a space of one dimension": (
        tune(SPACE["lr"]),
        ("give the space a name for each dimension",),
    ),
    "a horizon of 0": (tune(horizon=0), ("horizon is 0, expected a whole number of at least 1",)),
    "a horizon that is a float": (tune(horizon=3.0), ("horizon is 3.0, expected a whole number",)),
    "a key as a seed": (
        tune(settings={"seed": KEY}),
        ("seed is an array of shape () and dtype key<fry>, expected a whole number",),
    ),
    "a seed as a key": (estimate(key=0), ("key is 0, expected one PRNG key; pass jax.random.key(0)",)),
    "many keys": (
        estimate(key=jax.random.split(KEY)),
        ("key is an array of shape (2,)", "expected one PRNG key"),
    ),
    "whole hyperparameters": (
        estimate(hparams={"lr": 1, "l2": 0}),
        ("hparams['l2'] has dtype int", "expected floating point"),
    ),
    "the space as hparams": (
        estimate(hparams=SPACE),
        ("hparams['l2'] is LogReal", "expected a number or an array"),
    ),
    "a scheduler as a method": (tune(method="pbt"), ("method is 'pbt', a scheduler", "scheduler='pbt'")),
    "a word for a method": (tune(method="gradient"), ("did you mean 'descent'?",)),
    "another tool's word": (tune(settings={"n_trials": 10}), ("did you mean 'budget'?",)),
    "a rate as a setting": (tune(settings={"lr": 0.1}), ("did you mean 'learning_rate'?",)),
    "a function as callbacks": (
        tune(settings={"callbacks": print}),
        ("<built-in function print>, expected a Callback; pass e.g. Callback(step=print)",),
    ),
    "a negative number of steps": (
        lambda: hg.unroll(PROBLEM, H, None, -1),
        ("num_steps is -1, expected a whole number of at least 0",),
    ),
    "steps that are a float": (
        lambda: hg.unroll(PROBLEM, H, None, 2.0),
        ("num_steps is 2.0, expected a whole number",),
    ),
    "the folder before the task": (
        lambda: hg.resume("runs/mine", task()),
        ("directory is Task(", "pass the task first, as in hypergrad.resume(task, 'runs/mine')"),
    ),
    "a word for overwrite": (
        tune(settings={"storage": "runs/never", "overwrite": "yes"}),
        ("overwrite is 'yes', expected True or False",),
    ),
    "a file for a folder": (
        tune(settings={"storage": __file__}),
        ("storage is '", "a file, expected a folder"),
    ),
    "a folder that is not free": (
        tune(settings={"storage": str(ROOT)}),
        ("storage is '", "which is not empty, expected a new folder", "pass overwrite=True"),
    ),
    "a storage that is no path": (
        tune(settings={"storage": 3}),
        ("storage is 3, expected the path of a folder",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_helps(name):
    call, fragments = MISTAKES[name]
    compiled = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about)

    jax.random.split(KEY)  # what the test itself needs is compiled before
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(ValueError) as caught:
            call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message, message
    assert "\n" not in message and len(message) < 600 and ", expected " in message
    assert len(compiled) <= 1, "nothing of the user's compiles before it is refused"


def test_one_callback_needs_no_list():
    done = []
    hg.tune(
        task(),
        method="random",
        budget=2,
        eval_seeds=2,
        callbacks=hg.study.Callback(end=done.append),
    )
    assert len(done) == 1


WORDS = {
    "--method optuna": "did you mean 'optuna_tpe' or 'optuna_cma' or 'optuna_gp'?",
    "--lr 0.1": "no such option '--lr'; did you mean '--learning-rate'?",
    "--n-trials 9": "did you mean '--budget'?",
    "--method pbt": "method is 'pbt', a scheduler",
    "--budget 1e3": "--budget is '1e3', expected a whole number",
    "--arg width": "expected NAME=VALUE",
}


@pytest.mark.parametrize("words", WORDS)
def test_a_mistaken_word_of_the_command_line_is_one_line(words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["tune", "digits", *words.split()]) == 2
    said = capsys.readouterr().err
    assert WORDS[words] in said and said.count("\n") == 1


TASKS = {
    "data.csv": "TASK is 'data.csv', a table, expected the name of a task; "
    "pass tabular --data data.csv --label COLUMN",
    "digits.py": "TASK is 'digits.py', a file that is not there; did you mean 'digits'?",
    "digit": "did you mean 'digits'?",
    "tasks/quadratic.py:tsk": "did you mean 'task'?",
}


@pytest.mark.parametrize("name", TASKS)
def test_a_mistaken_task_is_one_line(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["tune", name]) == 2
    said = capsys.readouterr().err
    assert TASKS[name] in said and said.count("\n") == 1, said


def test_the_index_of_a_number_is_not_taken_for_it():
    """`Choice((0.1, 0.2))` gives 0 or 1, which an optimizer would take for a rate."""
    space = added(lr=hg.Choice((0.1, 0.2)))
    task = hg.Task("rates", PROBLEM, space, 3, None, "", True)
    with pytest.warns(
        UserWarning, match=r"hparams\['lr'\] is the index of an option of \(0.1, 0.2\)"
    ):
        hg.validate(task)
    rates = jnp.array(space["lr"].options)
    for optimizer, options in (
        (lambda h: optax.sgd(hg.select(h["lr"], rates)), (0.1, 0.2)),
        (lambda h: optax.sgd(rates @ jax.nn.one_hot(h["lr"], 2)), (0.1, 0.2)),
        (lambda h: optax.sgd(jnp.where(h["lr"] == 0, 0.1, 0.2)), (0.1, 0.2)),
        (lambda h: optax.sgd(0.1 * h["lr"]), (0, 1)),
        (lambda h: optax.sgd(0.1 * h["lr"]), ("small", "large")),
    ):
        made = PROBLEM._replace(optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hg.validate(task._replace(problem=made, space=added(lr=hg.Choice(options))))


class Learner(eqx.Module):
    """A class of the user's own, of a library of networks."""

    scale: float = 2.0

    def loss(self, params, hparams, batch):
        return self.scale * good(params, hparams, batch)

    def __call__(self, params, hparams, batch):
        return self.loss(params, hparams, batch)


LAYER = eqx.nn.Linear(4, 1, key=KEY)


def test_transformed_functions_and_methods_of_ones_own_are_functions_and_layers_are_not():
    made = [eqx.filter_jit(good), eqx.Partial(good), eqx.filter_checkpoint(good), nnx.jit(good)]
    for function in [*made, Learner().loss, Learner(), eqx.filter_jit(Learner().loss)]:
        check_problem(PROBLEM._replace(loss=function, objective=function))
    for layer in (
        NET,
        NET.init,
        NET.apply,
        LAYER,
        LAYER.__call__,
        nnx.Linear(4, 1, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match=r"problem\.init is of the module"):
            check_problem(PROBLEM._replace(init=layer))
    hg.validate(PROBLEM._replace(loss=eqx.filter_jit(good), objective=nnx.jit(good)), H)


def test_letters_that_may_mean_others_are_not_called_swapped():
    """`h` are the hidden weights here, in the right place."""
    made = PROBLEM._replace(loss=lambda h, p, b: jnp.mean(b[0] @ h["w"][:3]))
    with pytest.raises(ValueError, match="mend that line"):
        hg.validate(made, H)
