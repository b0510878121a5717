"""The controller: the contract of a tuner, what it warns of, the supernet and the command line."""

import json
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from hypergrad import study
from hypergrad.cli import main as cli
from hypergrad.core import files
from hypergrad.core.solve import identity
from hypergrad.estimators.policies import (
    Network,
    at_rest,
    enumerated,
    factorized,
    left_out,
    mixed,
    mixture,
    multitask,
    running_mean,
    sampled,
    shared,
    sizes,
    unrolled,
)
from hypergrad.report import diagrams, extras, style
from hypergrad.report.page import write_report
from hypergrad.space import Choice, LogReal, default
from hypergrad.testing import assert_close
from hypergrad.train import init_state, unroll
from hypergrad.tuners import ControllerWarning, clipped, controller, policy_adam
from hypergrad.tuning.build import build as build_tuner
from hypergrad.tuning.settings import Settings
from hypergrad.tuning.tune import tune
from models.policies import Recurrent, functions
from models.supernet import ACTIVATIONS, SKIPS, Supernet, diagram
from tasks import quadratic, supernet_digits
from tests import tabular
from tests.tabular import SPACE, TWO

KEY = jax.random.key(2)
MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
POLICY = factorized(SPACE)


def recurrent(space):
    heads = sizes(space)
    return multitask(space, Network(*functions(Recurrent(heads.num_heads, heads.size, 5))))


def build(policy=POLICY, problem=None, num=3, response=None, draws=None, horizon=2, **settings):
    problem = tabular.problem() if problem is None else problem
    draws = sampled(4) if draws is None else draws
    est = shared(problem, horizon, policy, response=response, draws=draws)
    return controller(problem, policy, est, num, **settings)


def test_contract():
    """Same key, same bits; one trace; shapes that stay; a step can be part of another program."""
    count = [0]
    plain = tabular.problem()

    def loss(w, h, batch):
        count[0] += 1
        return plain.loss(w, h, batch)

    tuner = build(recurrent(SPACE), plain._replace(loss=loss), num_candidates=3, entropy_bonus=0.01)
    state = tuner.init(KEY)
    after, trials = tuner.step(KEY, state)
    traced = count[0]
    again = tuner.step(KEY, state)
    tuner.step(KEY, after)
    assert count[0] == traced, "the second step traces nothing"
    chex.assert_trees_all_equal(again[1], trials)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    within = jax.eval_shape(tuner.step, KEY, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(within, (after, trials))
    assert trials.values.shape == (3,) and trials.hparams["op"].shape == (3,)
    assert trials.steps.tolist() == [6] * 3
    for name in ("direct_variance", "response_variance", "cosine", "entropy"):
        assert np.all(np.isfinite(trials.info[name])), name


@pytest.mark.slow
def test_a_study_is_resumed_to_the_same_bits(tmp_path):
    whole = study.run(build(), KEY, 4).digest

    def stop(index, trials, best):
        if index == 1:
            raise KeyboardInterrupt

    study.run(build(), KEY, 4, stop, storage=tmp_path / "s", checkpoint_seconds=0.0)
    assert study.resume_run(build(), tmp_path / "s").digest == whole


def test_it_follows_the_whole_gradient():
    """By enumeration: with the response it finds a lower expected objective than without."""
    ends = {}
    for name, response in (("none", left_out()), ("unrolled", unrolled())):
        tuner = build(
            response=response, draws=enumerated(), num=20, horizon=8, optimizer=optax.adam(0.1)
        )
        state, first = tuner.step(KEY, tuner.init(KEY))
        for _ in range(7):
            state, trials = tuner.step(KEY, state)
        ends[name] = float(trials.info["expected_value"][0])
        if name == "none":
            assert trials.info["response_norm"][0] == 0
    assert ends["unrolled"] < float(first.info["expected_value"][0]) - 0.1
    assert ends["unrolled"] < ends["none"] - 0.01


@pytest.mark.slow
def test_clipping_moves_several_times_within_its_bounds():
    """One move of plain descent is the unclipped one; four go further, and not past the ratio."""
    found = {}
    for name, clipping in (("none", None), ("one", clipped(0.2, 1)), ("four", clipped(0.9, 4))):
        tuner = build(num=1, optimizer=optax.sgd(0.05), clipping=clipping, response=left_out())
        state = tuner.init(KEY)
        after, _ = tuner.step(KEY, state)
        found[name] = jax.tree.map(jnp.subtract, after.phi, state.phi)
    assert_close(found["one"], found["none"], 100.0)
    assert optax.tree.norm(found["four"]) > 1.1 * optax.tree.norm(found["none"])
    hard = build(num=1, optimizer=optax.sgd(50.0), clipping=clipped(0.01, 8), response=left_out())
    state = hard.init(KEY)
    after, trials = hard.step(KEY, state)
    assert np.isfinite(optax.tree.norm(after.phi)) and np.isfinite(trials.values[0])


@pytest.mark.slow
def test_a_collapsed_policy_is_warned_of_once_with_its_step():
    tuner = build(num=40, optimizer=optax.adam(1.0), draws=enumerated())
    state = tuner.init(KEY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            state, trials = tuner.step(KEY, state)
    texts = [str(w.message) for w in caught if w.category is ControllerWarning]
    collapsed = [text for text in texts if "collapsed" in text]
    assert len(collapsed) == 1
    assert f"the policy has collapsed at step {int(state.collapsed_at)}" in collapsed[0]
    assert trials.info["entropy"][0] < 0.02
    held = build(num=40, optimizer=optax.adam(1.0), draws=enumerated(), entropy_bonus=30.0)
    state, _ = held.step(KEY, held.init(KEY))
    assert int(state.collapsed_at) == -1, "the bonus keeps it open"


@pytest.mark.slow
def test_rewards_that_are_equal_or_not_finite():
    plain = tabular.problem()
    flat = plain._replace(objective=lambda w, h, b: jnp.sum(w**2) + 0.1 * h["l2"])
    tuner = build(problem=flat, response=left_out())
    with pytest.warns(ControllerWarning, match="every update of step 0 had the same objective"):
        _, trials = tuner.step(KEY, tuner.init(KEY))
    assert trials.info["flat"].tolist() == [3] and trials.info["skipped"].tolist() == [0]
    nan = plain._replace(objective=lambda w, h, b: plain.objective(w, h, b) + jnp.nan * h["num"])
    tuner = build(problem=nan)
    state = tuner.init(KEY)
    with pytest.warns(ControllerWarning, match="no update of step 0 was finite"):
        after, trials = tuner.step(KEY, state)
    jax.tree.map(np.testing.assert_array_equal, after.phi, state.phi)
    assert trials.info["skipped"].tolist() == [3] and np.isnan(trials.info["expected_value"])


@pytest.mark.slow
def test_a_response_without_use_is_left_out_and_warned_of():
    tuner = build(response=at_rest(identity(1e4)))
    with pytest.warns(
        ControllerWarning, match="the response was left out of every update of step 0"
    ):
        _, trials = tuner.step(KEY, tuner.init(KEY))
    assert trials.info["refused"].tolist() == [3] and trials.info["skipped"].tolist() == [0]
    assert trials.info["response_norm"] == 0 < trials.info["direct_norm"]
    assert trials.info["residual"] > 1


def steep(rate, response, horizon=40):
    """A policy whose learning rate begins at `rate`; above 1.3 some choice diverges, above 4 all do."""
    space = {"op": TWO["op"], "rate": LogReal(0.01, 100.0, rate)}
    problem = tabular.problem()
    policy = multitask(space)
    credit = None if "optimizer" in response.sees else running_mean()
    est = shared(problem, horizon, policy, response=response, draws=sampled(4), credit=credit)
    return controller(problem, policy, est, 10, optimizer=policy_adam(0.1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "response",
    [unrolled(), at_rest(identity())],
    ids=["unrolled", "at_rest"],
)
def test_a_policy_that_begins_at_rates_that_diverge_recovers(response):
    """Nothing is lost to the windows that blow up, and the rates come down to those that train."""
    tuner = steep(3.0, response)
    state, rates, counts, values = tuner.init(KEY), [], [], []
    for _ in range(10):
        state, trials = tuner.step(KEY, state)
        assert np.isfinite(optax.tree.norm((state.phi, state.estimator.params)))
        rates.append(trials.hparams["rate"][0])
        counts.append(trials.info["dropped"][0])
        values.append(trials.info["expected_value"][0])
    assert counts[0] >= 5 and not any(counts[-3:])
    assert rates[-1] < 0.3 and values[-1] < values[0]
    assert np.all(np.isfinite(values)) and np.isfinite(trials.values[0])


@pytest.mark.slow
def test_windows_that_all_diverge_are_told_with_their_step():
    tuner = steep(50.0, at_rest(identity()), horizon=100)
    state = tuner.init(KEY)
    with pytest.warns(ControllerWarning, match="diverged in every window of step 0"):
        state, trials = tuner.step(KEY, state)
    assert trials.info["dropped"].tolist() == [10]
    assert 0 < trials.info["first_nonfinite"][0] <= 100
    assert np.isnan(trials.info["expected_value"][0]) and np.isfinite(trials.values[0])
    assert np.isfinite(optax.tree.norm((state.phi, state.estimator.params)))


def test_the_gradient_of_a_policy_is_cut_as_a_whole():
    """Below the norm it is Adam; a gradient of 1e16 does not stop the moves after it."""
    healthy = {"a": jnp.array([3.0, -4.0]), "b": jnp.array(12.0)}
    found = {}
    for name, optimizer in (("plain", optax.adam(0.1)), ("cut", policy_adam(0.1))):
        for first in (1.0, 1e15):
            state = optimizer.init(healthy)
            _, state = optimizer.update(jax.tree.map(lambda x, s=first: -s * x, healthy), state)
            for _ in range(10):
                move, state = optimizer.update(healthy, state)
            found[name, first] = move
    assert_close(found["cut", 1.0], found["plain", 1.0])
    assert found["cut", 1e15]["b"] < 0
    assert found["plain", 1e15]["b"] > 0, "Adam alone still moves the other way"


CASES = {
    "policy is dict": lambda: build(policy=SPACE),
    "estimator is int": lambda: controller(tabular.problem(), POLICY, 5),
    "num_updates is 0": lambda: build(num=0),
    "num_candidates is 0": lambda: build(num_candidates=0),
    "entropy_bonus is -1": lambda: build(entropy_bonus=-1),
    "clipping is float": lambda: build(clipping=0.2),
    "epsilon is 1.5": lambda: clipped(1.5),
    "num_epochs is 0": lambda: clipped(0.2, 0),
    "estimator keeps no shared weights": lambda: controller(
        tabular.problem(), POLICY, mixed(tabular.problem(), 2, POLICY)
    ).init(KEY),
    "num_candidates is 2 with a policy that mixes": lambda: _mixing(num_candidates=2),
}


def _mixing(**settings):
    space = {"op": Choice(("a", "b"))}
    problem = tabular.problem()._replace(
        loss=lambda w, h, b: jnp.sum((w - h["op"][0]) ** 2),
        objective=lambda w, h, b: jnp.sum((w - h["op"][1]) ** 2),
    )
    tuner = build(mixture(space), problem, draws=sampled(1), **settings)
    return tuner.step(KEY, tuner.init(KEY))


@pytest.mark.parametrize("fragment", list(CASES))
def test_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        CASES[fragment]()
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and len(message) < 500


ARCHITECTURE = {
    "operation_0": 1, "width_0": 1, "activation_0": 0, "skip_0": 1,
    "operation_1": 0, "width_1": 2, "activation_1": 1, "skip_1": 0,
}  # fmt: skip


def net():
    module = Supernet(num_layers=2, widths=(2, 3, 5), num_outputs=4, rank=2)
    inputs = jax.random.normal(KEY, (6, 7))
    params = module.init(KEY, inputs, ARCHITECTURE)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    return module, inputs, params


@pytest.mark.slow
def test_the_supernet_is_the_network_that_was_chosen():
    module, inputs, p = net()
    x = jnp.tanh(inputs @ p["input"]["kernel"] + p["input"]["bias"])
    narrow = x @ p["down_0"]["kernel"] @ p["up_0"]["kernel"] + p["bias_0"]
    x = jnp.tanh(narrow) * jnp.array([1, 1, 1, 0, 0]) + x
    x = nn.silu(x @ p["dense_1"]["kernel"] + p["bias_1"])
    want = x @ p["output"]["kernel"] + p["output"]["bias"]
    assert_close(module.apply({"params": p}, inputs, ARCHITECTURE), want)


def test_one_program_for_all_architectures():
    module, inputs, params = net()
    space = {
        name: Choice(options)
        for layer in range(2)
        for name, options in (
            (f"operation_{layer}", range(3)), (f"width_{layer}", range(3)),
            (f"activation_{layer}", tuple(ACTIVATIONS)), (f"skip_{layer}", SKIPS),
        )
    }  # fmt: skip
    drawn = jax.vmap(lambda k: factorized(space).sample(k, factorized(space).init(k)))(
        jax.random.split(KEY, 8)
    )
    count = [0]

    @jax.jit
    def apply(architecture):
        count[0] += 1
        return module.apply({"params": params}, inputs, architecture)

    each = [apply(jax.tree.map(lambda x, i=i: x[i], drawn)) for i in range(8)]
    assert count[0] == 1
    assert_close(jax.vmap(apply)(drawn), jnp.stack(each))
    assert len({float(jnp.sum(x)) for x in each}) == 8
    counts = {"operation": 3, "width": 3, "activation": len(ACTIVATIONS), "skip": 2}
    one_hot = {
        name: jax.nn.one_hot(x, counts[name.split("_")[0]]) for name, x in ARCHITECTURE.items()
    }
    assert_close(apply(one_hot), apply(ARCHITECTURE))


@pytest.mark.slow
def test_what_no_choice_reads_has_no_gradient():
    module, inputs, params = net()
    grads = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, inputs, ARCHITECTURE) ** 2))(
        params
    )
    assert not np.any(grads["dense_0"]["kernel"]) and not np.any(grads["down_1"]["kernel"])
    assert np.any(grads["up_0"]["kernel"]) and np.any(grads["dense_1"]["kernel"])


def test_the_diagram():
    graph = diagram(ARCHITECTURE, 2, (2, 3, 5))
    assert graph["nodes"][1] == ["layer 0", "bottleneck", "3 tanh"]
    assert graph["edges"] == [[0, 1], [0, 2], [1, 2], [2, 3]]
    for width in (style.WIDE, style.NARROW):
        drawn = style.svg(diagrams.architecture(diagrams.Diagram(**graph), width=width))
        assert "bottleneck" in drawn
    with pytest.raises(ValueError, match=r"task.diagram failed on the given hparams"):
        extras.check_diagram(lambda h: {"nodes": 3}, {})
    with pytest.raises(ValueError, match=r"task.diagram returned 1 nodes and the edges"):
        extras.check_diagram(lambda h: {"nodes": [["a"]], "edges": [[0, 1]]}, {})


def small(**settings):
    sizes = {"num_train": 60, "num_valid": 60, "num_test": 40}
    return supernet_digits.task(
        horizon=4, batch_size=8, num_layers=1, policy_width=4, **{**sizes, **settings}
    )


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the MNIST files in ../shared/data")
@pytest.mark.slow
def test_mnist():
    """The same networks on images of 28 x 28: one of them, trained by itself."""
    task = supernet_digits.task(data=str(MNIST), num_train=500, num_valid=100, num_test=500)
    problem, hparams = task.problem, default(task.space)
    hparams |= {f"width_{layer}": jnp.asarray(2) for layer in range(3)}
    assert problem.valid_batch(KEY)[0].shape == (100, 28, 28, 1)
    state = init_state(problem, KEY, hparams)
    assert state.params["input"]["kernel"].shape == (784, 32)
    params = jax.jit(lambda h, s: unroll(problem, h, s, 100))(hparams, state).params
    scores = task.test(params, hparams)
    assert scores.shape == (500,) and scores.mean() > 0.7
    with pytest.raises(ValueError, match="num_train is 1, which holds one class"):
        supernet_digits.task(data=str(MNIST), num_train=1, batch_size=1)


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    arguments = "num_train=60 num_valid=60 num_test=40 batch_size=8 num_layers=1 policy_width=4"
    arguments += " tune_optimizer=false"  # that it traces with it is the next test
    words = ["tune", "supernet_digits", "--method", "controller", "--response", "implicit"]
    words += ["--budget", "2", "--horizon", "4", "--seeds", "1", "--eval-seeds", "2", "--json"]
    words += [w for pair in arguments.split() for w in ("--arg", pair)]
    assert cli.main([*words, "--out", str(tmp_path / "s")]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == 0
    result = json.loads((tmp_path / "s" / "result.json").read_text())
    assert set(result["configurations"]) == {"default", "tuned", "random"}
    assert result["diagram"]["nodes"][0][0] == "input"
    page = (tmp_path / "s" / "report.html").read_text()
    assert "tuned architecture" in page and "layer 0" in page
    norms = result["trace"]["response_norm"]
    assert all(x > 0 for x in norms)
    del result["sha256"]
    result["diagram"]["edges"][0][0] = 99
    files.write_json(tmp_path / "s" / "result.json", result)
    with pytest.raises(ValueError, match="diagram is not a graph"):
        write_report(tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("response", ["unrolled", "none", "implicit"])
def test_every_response_takes_the_optimizer(response):
    """Traced, not run: real leaves learn by credit where the response does not see them."""
    tuner, _ = build_tuner(small(), Settings("controller", response=response))
    assert tuner.step is not None


def test_a_space_without_choices_is_refused():
    with pytest.raises(ValueError, match="space has only real leaves"):
        tune(quadratic.task(horizon=3), method="controller")
    with pytest.raises(ValueError, match="num_train is 2000, expected at most the 1000 digits"):
        small(num_train=2000)
    with pytest.raises(ValueError, match="which does not read it"):
        tune(small(), method="controller", memory=2**30)
    with pytest.raises(ValueError, match="response is 'enas', expected one of none"):
        tune(small(), method="controller", response="enas")
