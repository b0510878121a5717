"""Each refusal is one line that names the argument, what was got, what was expected and what to do."""

import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import estimators, searchers, space as sp, study, tuners
from hypergrad.core.flax import from_linen, from_nnx
from hypergrad.core.types import Variables
from hypergrad.populations import population
from hypergrad.problem import Problem
from hypergrad.space import Choice, Integer, LogReal, Real, Sequence
from hypergrad.train import averaged
from hypergrad.tuning.tune import tune
from hypergrad.validation import validate
from tasks import data, digits, images, quadratic, ridge, tabular

GOOD = Problem(
    init=lambda key, h: jnp.ones(3),
    loss=lambda p, h, b: jnp.sum(p**2) * h["l2"],
    objective=lambda p, h, b: jnp.sum(p),
    optimizer=lambda h: optax.sgd(0.1),
    train_batch=lambda key, step: (),
    valid_batch=lambda key: (),
)
H = {"l2": jnp.float32(1.0)}
KEY = jax.random.key(0)


def checked(**parts):
    return lambda: validate(GOOD._replace(**parts), H, 3)


def csv(text):
    def run(tmp_path):
        path = tmp_path / "t.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        table = data.read_csv(path, "y")
        return data.encode_labels(table, None)

    return run


def idx(content, name="a"):
    def run(tmp_path):
        (tmp_path / name).write_bytes(content)
        return data.read_idx(tmp_path / name)

    return run


def npz(**arrays):
    def run(tmp_path):
        np.savez(tmp_path / "a.npz", **arrays)
        return images.task(data=str(tmp_path / "a.npz"), num_train=4, num_valid=2, num_test=2)

    return run


STATEFUL = GOOD._replace(
    init=lambda key, h: Variables(jnp.ones(3), {"n": jnp.zeros(2)}),
    objective=lambda p, h, b: jnp.sum(p.params),
)
RIDGE = ridge.task()
CASES = {
    "low is 0 in LogReal": lambda: LogReal(0, 1),
    "expected low < high": lambda: Real(2.0, 1.0),
    "low is nan in Real": lambda: Real(float("nan"), 1.0),
    "low is 0.0 in LogReal, expected a positive": lambda: LogReal(0.0, 1, default=2e-3),
    "default is '3' in LogReal": lambda: LogReal(0.1, 1, default="3"),
    "low is True in Integer, expected a whole number": lambda: Integer(True, 3),
    "default is 3.0 in Real": lambda: Real(0.0, 1.0, default=3.0),
    "shape is 3 in Real": lambda: Real(0.0, 1.0, shape=3),
    "low is 0.5 in Integer": lambda: Integer(0.5, 3),
    "options is ('a',) in Choice, expected at least two": lambda: Choice(("a",)),
    "options is 'ab'": lambda: Choice("ab"),
    "options is ('a', 'b', 'a') in Choice, expected different": lambda: Choice(("a", "b", "a")),
    "space['a.b'] is there twice": lambda: tune(
        GOOD, {"a": {"b": Real(0, 1)}, "a.b": Real(0, 1)}, horizon=2, method="random"
    ),
    "values has shape (3,), expected (4,)": lambda: searchers.random({"x": Real(0, 1)}).tell(
        (), searchers.Trials({"x": np.ones(4)}, np.ones(3), np.ones(4, int), np.arange(4), {})
    ),
    "population is 2 with method 'cross_entropy', expected at least 3": lambda: tune(
        GOOD, {"l2": Real(0, 1)}, horizon=2, method="cross_entropy", population=2
    ),
    "num is 2.5": lambda: searchers.random({"x": Real(0, 1)}).ask(KEY, (), 2.5),
    "searcher is int 3, expected a Searcher": lambda: tuners.search(
        population(GOOD), 3, lambda p, k, h: None, 2
    ),
    "default is 'c' in Choice": lambda: Choice(("a", "b"), default="c"),
    "element is 3 in Sequence": lambda: Sequence(3, 5),
    "length is 0 in Sequence": lambda: Sequence(Real(0, 1), 0),
    "knots is 9 in Sequence": lambda: Sequence(Real(0, 1), 5, knots=9),
    "space['x'] is 0.1": lambda: sp.default({"x": 0.1}),
    "space has no dimensions": lambda: sp.default({}),
    "space['n'] is Integer": lambda: sp.unconstrain({"n": Integer(0, 3)}, {"n": 1}),
    "hparams['x'] holds 7": lambda: sp.check_value({"x": Real(0, 1)}, {"x": 7.0}),
    "hparams['x'] has shape (2,)": lambda: sp.check_value({"x": Real(0, 1)}, {"x": np.zeros(2)}),
    "hparams has the leaves ['y']": lambda: sp.check_value({"x": Real(0, 1)}, {"y": 0.5}),
    "problem is 3": lambda: validate(3, H),
    "problem.loss is None": checked(loss=None),
    "problem.loss returned an array of shape (3,)": checked(loss=lambda p, h, b: p),
    "problem.loss returned a tuple of 2": checked(loss=lambda p, h, b: (jnp.sum(p), None)),
    "problem.objective returned an array of shape () and dtype int": checked(
        objective=lambda p, h, b: jnp.argmax(p)
    ),
    "problem.loss failed on the given hparams: hparams or batch has no entry 'lr'": checked(
        loss=lambda p, h, b: h["lr"]
    ),
    "problem.optimizer returned 0.1": checked(optimizer=lambda h: 0.1),
    "params['params'] has dtype int": checked(init=lambda key, h: jnp.arange(3)),
    "problem.init returned params without leaves": checked(init=lambda key, h: {}),
    "expected (value, new_state)": lambda: validate(
        STATEFUL._replace(loss=lambda p, h, b: p.params.sum()), H
    ),
    "problem.loss returned state of structure": lambda: validate(
        STATEFUL._replace(loss=lambda p, h, b: (p.params.sum(), {})), H
    ),
    "problem.loss returned state['n'] of shape (3,)": lambda: validate(
        STATEFUL._replace(loss=lambda p, h, b: (p.params.sum(), {"n": p.params})), H
    ),
    "hparams has no leaves": lambda: validate(GOOD, {}),
    "hparams['l2'] is 'x'": lambda: validate(GOOD, {"l2": "x"}),
    "horizon is 0": lambda: estimators.reverse(GOOD, 0),
    "horizon is 2.5": lambda: estimators.forward(GOOD, 2.5),
    "chunk is 0": lambda: estimators.forward(GOOD, 3, chunk=0),
    "window is 5, expected at most": lambda: estimators.truncated(GOOD, 3, 5),
    "num_seeds is 1": lambda: estimators.average(estimators.reverse(GOOD, 3), 1),
    "hparams['l2'] has dtype int32": lambda: estimators.reverse(GOOD, 3).estimate(
        KEY, (), {"l2": jnp.int32(1)}
    ),
    "memory is 0": lambda: estimators.plan(GOOD, H, 3, 0),
    "memory is 10 bytes": lambda: estimators.plan(GOOD, H, 3, 10),
    "space['k'] is Choice": lambda: tuners.descent(
        estimators.reverse(GOOD, 3), {"k": Choice((1, 2))}
    ),
    "clip is -1": lambda: tuners.descent(estimators.reverse(GOOD, 3), {"l2": Real(0, 1)}, clip=-1),
    "num_restarts is 0": lambda: tuners.descent(
        estimators.reverse(GOOD, 3), {"l2": Real(0, 1)}, num_restarts=0
    ),
    "space['w'] is static": lambda: searchers.random({"w": Integer(1, 3, static=True)}),
    "budget is 0": lambda: study.run(None, KEY, 0),
    "decay is 2": lambda: averaged(GOOD, 2),
    "module is int 3, expected a Module": lambda: from_linen(3),
    "make is 3, expected a function": lambda: from_nnx(3),
    "method is 'desent'": lambda: tune(RIDGE, method="desent"),
    "did you mean 'descent'?": lambda: tune(RIDGE, method="desent"),
    "did you mean 'optuna_tpe' or 'optuna_cma' or": lambda: tune(RIDGE, method="optuna"),
    "method is 'pbt', a scheduler": lambda: tune(RIDGE, method="pbt"),
    "pass scheduler='pbt' with a method that reads it, such as": lambda: tune(RIDGE, method="pbt"),
    "pass method='tpe'": lambda: tune(RIDGE, method="random", scheduler="tpe"),
    "pass bilevel='soba' with": lambda: tune(RIDGE, method="soba"),
    "learning_rate is 0": lambda: tune(RIDGE, learning_rate=0),
    "task is int": lambda: tune(3),
    "memory is given with estimator 'forward'": lambda: tune(
        RIDGE, memory=10**9, estimator="forward"
    ),
    "setting of tune is 'bugdet'": lambda: tune(RIDGE, bugdet=3),
    "space is given with a Task": lambda: tune(RIDGE, {"l2": Real(0, 1)}),
    "space is None, expected one with a Problem": lambda: tune(GOOD),
    "horizon is None, expected one with a Problem": lambda: tune(GOOD, {"l2": Real(0, 1)}),
    "seed is -1": lambda: tune(RIDGE, seed=-1),
    "callbacks[0] is builtin_function_or_method": lambda: tune(RIDGE, callbacks=[print]),
    "batch_size is 5000": lambda: digits.task(batch_size=5000),
    "width is 0": lambda: digits.task(width=0),
    "num_params is 0": lambda: quadratic.task(num_params=0),
    "data is 'nowhere.csv', a file that is not there": lambda: tabular.task(data="nowhere.csv"),
    "data is 'nowhere', which is not there": lambda: images.task(data="nowhere"),
    "has 0 rows": csv(""),
    "has 1 rows": csv("x,y\n"),
    "has 3 fields in row 3": csv("x,y\n1,a\n1,2,3\n"),
    "two columns 'x'": csv("x,x,y\n1,2,3\n"),
    "a column without a name": csv(",y\n1,2\n"),
    "label is 'y', expected a column": csv("x,z\n1,2\n"),
    "is missing in row 3": csv("x,y\n1,a\n1,?\n"),
    "an infinity in column 'x', row 3": csv("x,y\n1,a\ninf,b\n"),
    "has one class, 'a'": csv("x,y\n1,a\n2,a\n"),
    "is not UTF-8 at byte 4": csv(b"x,y\n\xff,a\n"),
    "the label only": csv("y\n1\n2\n"),
    "expected the magic number": idx(b"\x01\x02\x03\x04"),
    "starts with nothing": idx(b""),
    "ends in its header": idx(b"\0\0\x08\x02\0\0"),
    "expected 6 bytes for shape (2, 3)": idx(b"\0\0\x08\x02" + struct.pack(">II", 2, 3) + b"12345"),
    "holds more, expected 1 bytes": idx(b"\0\0\x08\x01" + struct.pack(">I", 1) + b"12345"),
    "expected at most 1073741824": idx(b"\0\0\x0e\x02" + struct.pack(">II", 2**31, 2**31)),
    "cannot be read": idx(b"no gzip", "a.gz"),
    "expected 4 bytes for shape (4,)": idx(
        gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 4) + b"123"), "b.gz"
    ),
    "has no array 'x'": npz(a=np.zeros(3)),
    "holds Python objects": npz(x=np.array([{}, {}]), y=np.zeros(2, int)),
    "expected one label for each": npz(x=np.zeros((3, 2)), y=np.zeros(2, int)),
    "expected finite pixels": npz(x=np.full((9, 2), np.nan), y=np.zeros(9, int)),
    "is 8, expected at most the 3 images": npz(x=np.zeros((3, 2)), y=np.zeros(3, int)),
    "has one class among": npz(x=np.zeros((9, 2)), y=np.zeros(9, int)),
}


@pytest.mark.parametrize("fragment", list(CASES))
def test_refused_in_one_line(fragment, tmp_path):
    call = CASES[fragment]
    with pytest.raises(ValueError) as caught:
        call(tmp_path) if call.__code__.co_argcount else call()
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and len(message) < 500


def test_population_needs_no_settings():
    assert population(GOOD).init
