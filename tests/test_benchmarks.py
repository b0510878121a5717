"""The benchmarks' own machinery, and the tables that the documents quote."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import savemat

from benchmarks import implicit, nets, pools, scaling, tables
from benchmarks.__main__ import main
from benchmarks.record import Figure, Results, interleave
from hypergrad.estimators import reverse

ROOT = Path(__file__).parent.parent
KEPT = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.jsonl"


def test_results_go_on_where_they_stopped(file):
    first = Results(file, "speed", {"quick": True})
    first.add("small", [Figure("ours", "time", 1.5, "s"), Figure("ours", "loss", 0.1, "nats", 0)])
    first.add("small", [Figure("ours", "loss", 0.2, "nats", 1)])
    again = Results(file, "speed", {"quick": True})
    assert again.cases == first.cases == {"small": {"ours": {"time": 1.5, "loss": [0.1, 0.2]}}}
    assert again.header == first.header
    assert set(json.loads(file.read_text().splitlines()[1])) == {
        "benchmark", "case", "method", "metric", "value", "unit", "seed",
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["", "{", '{"benchmark": "speed"}\n', "[]\n", '{"a": 1}'])
def test_a_damaged_results_file_is_named(file, damage):
    file.write_text(damage)
    with pytest.raises(ValueError, match="is no whole results file; name another with --out"):
        Results(file, "speed", {})


def test_a_torn_last_line_is_named(file):
    Results(file, "speed", {}).add("small", [Figure("ours", "time", 1.5, "s")])
    file.write_text(file.read_text()[:-9])
    with pytest.raises(ValueError, match="no whole results file"):
        Results(file, "speed", {})


def test_other_settings_do_not_share_a_file(file):
    Results(file, "speed", {"cores": 1})
    with pytest.raises(ValueError, match=r"'cores': 1.*expected.*'cores': 2"):
        Results(file, "speed", {"cores": 2})


def test_other_versions_are_read_but_not_added_to(file, monkeypatch):
    Results(file, "speed", {})
    monkeypatch.setattr("benchmarks.record.commit", lambda: "another")
    assert Results(file, "speed", {}, resume=False).cases == {}
    with pytest.raises(ValueError, match=r"expected .*another; name another with --out"):
        Results(file, "speed", {})


def test_a_number_that_is_none_is_refused(file):
    with pytest.raises(ValueError, match="Out of range float"):
        Results(file, "speed", {}).add("small", [Figure("ours", "time", float("nan"), "s")])


def test_turns_are_taken_and_the_first_does_not_count():
    order = []

    def call(name, seconds):
        order.append(name)
        return seconds.pop(0)

    times = interleave(
        {"a": lambda s=[9.0, 1.0, 3.0, 2.0]: call("a", s), "b": lambda s=[9.0] * 4: call("b", s)}, 3
    )
    assert order == ["a", "b"] * 4
    assert times["a"] == {"median": 2.0, "lowest": 1.0, "highest": 3.0}


def test_short_calls_are_warm():
    """A short call is made twice in each turn, and the second counts; a long one only once."""
    order, seconds = [], {"short": [0.1, 9.0, 2.0, 9.0, 2.0], "long": [9.0]}

    def call(name):
        order.append(name)
        return seconds[name][(order.count(name) - 1) % len(seconds[name])]

    times = interleave({name: partial(call, name) for name in seconds}, 2, warm=0.5)
    assert order == ["short", "long"] + 2 * ["short", "short", "long"]
    assert times["short"]["highest"] == 2.0 and times["long"]["median"] == 9.0


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_results_name_what_they_measured(path):
    header = tables.load(path).header
    assert header["benchmark"] == path.stem.partition("-")[0]
    assert ("-" in path.stem) == ("accelerator" in header["machine"])
    assert header["settings"]["quick"] is False
    assert not header["commit"].endswith("+"), "measured on files that no commit holds"
    assert {"date", "machine", "command"} <= set(header)
    assert "not installed" not in header["versions"].values()


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "docs/flatness.md" else ())
        for name in tables.DOCUMENTS
    ],
)
def test_tables_are_those_of_the_results(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert tables.BLOCK.search(text), "no table in this document"
    assert tables.render(text, ROOT / "benchmarks" / "results") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["schedules", "--data", "nowhere"], "--data is 'nowhere', which is not there"),
        (["hypergradient", "--cores", "0"], "--cores is 0, expected at least 1"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line", "cases"),
    [("schedules", "| descent, smoothed", 5), ("first_answer", "| ratio", 1)],
)
def test_a_quick_run_ends_with_its_table(tmp_path, name, line, cases):
    out = tmp_path / "quick.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick", "--out", str(out)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
    assert len(next(iter(tables.load(out).cases.values()))) == cases


def test_the_table_of_an_accelerator_stands_beside_that_of_the_cpu(tmp_path):
    kept = ROOT / "benchmarks" / "results" / "odds.jsonl"
    lines = kept.read_text().splitlines()
    header = json.loads(lines[0])
    header["machine"]["accelerator"] = "NVIDIA H200"
    (tmp_path / "odds.jsonl").write_text(kept.read_text())
    there = "\n".join([json.dumps(header), *lines[1:]]) + "\n"
    (tmp_path / "odds-NVIDIA_H200.jsonl").write_text(there)
    (tmp_path / "odds-quick.jsonl").write_text("not read")
    block = "<!-- odds table -->\nold\n<!-- end -->"
    made = tables.render(block, tmp_path)
    assert made.count("| way ") == 2 and made.count(", NVIDIA H200\n") == 1
    assert tables.render(made, tmp_path) == made


@pytest.mark.slow
def test_gpt2_has_as_many_weights_as_it_should():
    net = nets.gpt2(2)
    key, (batch, _) = jax.random.key(0), jax.eval_shape(net.problem.valid_batch, jax.random.key(0))
    assert batch.shape == (2, 1024)
    weights = jax.eval_shape(lambda k: net.problem.init(k, net.hparams), key)
    assert sum(x.size for x in jax.tree.leaves(weights)) == 124_439_808
    estimate = reverse(net.problem, 2).estimate
    _, found = jax.eval_shape(lambda h: estimate(key, (), h), net.hparams)
    assert found.hypergrad["lr"].shape == (2,)


def test_what_a_program_sends_is_read_off_it():
    text = """
      %a = s32[64]{0} all-gather(%b), channel_id=1, dimensions={0}
      %c = (f32[32,3]{1,0}, /*index=5*/bf16[32,100]{1,0}) all-reduce(%d, %e), channel_id=2
      %f = pred[64]{0} collective-permute-start(%g), channel_id=3
      %h = f32[64]{0} fusion(%all-gather.1), kind=kLoop
    """
    sent = scaling.collectives(text, 64)
    assert sent == [("scalars", 256), ("scalars", 384), ("states", 6400), ("scalars", 64)]


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(lambda: nets.mlp(5, 4, 8), id="mlp"),
        pytest.param(lambda: nets.transformer(2, 1, 8), id="transformer", marks=pytest.mark.slow),
        pytest.param(lambda: nets.convolutional("cnn", 2, 4), id="cnn", marks=pytest.mark.slow),
        pytest.param(
            lambda: nets.convolutional("resnet", 2, 4, 2), id="resnet", marks=pytest.mark.slow
        ),
    ],
)
def test_loops_by_hand_are_the_same_training(net):
    """Else the ratios of `models` would compare different work."""
    net = net()
    by_hand = jax.jit(jax.grad(lambda h: nets.by_hand(net, h, nets.KEY)))(net.hparams)
    estimate = jax.jit(reverse(net.problem, net.horizon).estimate)
    ours = estimate(nets.KEY, (), net.hparams)[1].hypergrad
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), ours, by_hand)


@pytest.mark.slow
def test_twenty_iterations_solve_the_penalties():
    """Else the row on penalties would compare methods none of which gets anywhere."""
    setting = implicit.QUICK[1]
    made = implicit.arrays(setting, "")
    problem, hparams = implicit.make_problem(setting, made), {"tuned": jnp.asarray(made["hparams"])}
    estimator = implicit.ours(problem)["hypergrad cg"]
    state = estimator.init(implicit.KEY, hparams)
    got = jax.jit(estimator.estimate)(implicit.KEY, state, hparams)[1].hypergrad["tuned"]
    exact = implicit.reference(setting, made)
    assert np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)


def test_svhn_is_read_where_the_user_has_it(tmp_path):
    assert not pools.files_of("svhn", None) and not pools.files_of("svhn", str(tmp_path))
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3, 40), dtype=np.uint8)
    labels = np.arange(40)[:, None] % 10 + 1
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": labels})
    parts, classes = pools.images("svhn", str(tmp_path), 0)
    assert classes == 10 and [len(part.labels) for part in parts] == [20, 10, 10]
    known = {pixels[..., i].tobytes(): labels[i, 0] % 10 for i in range(40)}
    for part in parts:
        for image, label in zip(part.inputs, part.labels, strict=True):
            assert known[np.rint(255 * image).astype(np.uint8).tobytes()] == label
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read as SVHN") as caught:
        pools.images("svhn", str(tmp_path), 0)
    assert "\n" not in str(caught.value)
