"""Indices past the data, which jax clamps in silence, are warned of; what stays inside is not."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
from hypergrad.core.cautions import IndexWarning

ROWS, HORIZON = 64, 10
X, Y = jnp.ones((ROWS, 4)), jnp.arange(ROWS) % 3
BATCHES = jnp.ones((8, 16, 4))
ONE_BASED = Y + 1
cut = jax.lax.dynamic_slice_in_dim


def loss(p, h, b, num=3):
    return h["l2"] * jnp.sum(p**2) + jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(b[0] @ p[:, :num], b[1])
    )


PROBLEM = hg.Problem(
    init=lambda key, h: jnp.zeros((4, 4)),
    loss=loss,
    objective=loss,
    optimizer=lambda h: optax.sgd(0.1),
    train_batch=lambda key, step: (X[:8], Y[:8]),
    valid_batch=lambda key: (X, Y),
)
H = {"l2": jnp.float32(0.1)}


def rows(x, i):
    return x[i], Y[i]


def masked(i):
    return jnp.where((i < ROWS)[:, None], X[i], 0), Y[i % ROWS]


def in_pairs(key, step):
    i = jax.random.randint(key, (8,), 0, ROWS)
    return X[i, jax.random.randint(key, (8,), 0, 5)][:, None] * jnp.ones(4), Y[i]


PAST = {
    "a draw": (lambda key, step: rows(X, jax.random.randint(key, (8,), 0, 100)), 99),
    "a draw of many": (
        lambda key, step: rows(X, jax.random.randint(key, (8,), 0, 10**6)),
        10**6 - 1,
    ),
    "a draw from 1": (lambda key, step: rows(X, jax.random.randint(key, (8,), 1, ROWS + 1)), ROWS),
    "a choice": (lambda key, step: rows(X, jax.random.choice(key, 65, (8,))), 64),
    "a choice without repeats": (
        lambda key, step: rows(X, jax.random.choice(key, 70, (8,), replace=False)),
        69,
    ),
    "a permutation": (lambda key, step: rows(X, jax.random.permutation(key, 65)[:8]), 64),
    "rows of a step": (lambda key, step: rows(X, step * 8 + jnp.arange(8)), 79),
    "rows of a jitted step": (
        lambda key, step: jax.jit(partial(rows, X))(step * 8 + jnp.arange(8)),
        79,
    ),
    "rows from the end": (lambda key, step: rows(X, 64 - step + jnp.arange(8)), 71),
    "take": (lambda key, step: (jnp.take(X, step * 8 + jnp.arange(8), axis=0), Y[:8]), 79),
    "a slice of a step": (lambda key, step: (cut(X, step * 8, 8), cut(Y, step * 8, 8)), 79),
    "a batch of a step": (lambda key, step: (BATCHES[step], Y[:16]), 9),
    "one row of a step": (lambda key, step: (X[step * 7 + 1][None], Y[:1]), 64),
    "a quotient": (lambda key, step: (BATCHES[jax.lax.div(step, jnp.ones_like(step))], Y[:16]), 9),
    "the second of two indices": (in_pairs, 4),
}

STARTS, LENGTHS = jnp.array([0, 30, 50, 60]), jnp.array([30, 20, 10, 4])
ORDER, PADDED, MASK = jnp.array([7, 0, 1]), jnp.array([1, 99, 2]), jnp.array([1, 0, 1])
BACK = jnp.arange(HORIZON)[::-1].copy()


def last_ones(key, step):
    d = jax.random.randint(key, (8,), 0, 4)
    return rows(X, STARTS[d] + LENGTHS[d] - 1)


def of_both_halves(key, step):
    p = jax.random.permutation(key, 60)
    return jnp.ones((118, 4))[p[:30] + p[30:]], Y[:30]


def folded(key, step):
    i = jax.random.randint(key, (8,), 0, 60)
    return rows(X[:60], jax.lax.div(i, 8) * 8 + jax.lax.rem(i, 8))


INSIDE = {
    "a sum of two columns of a row": last_ones,
    "a sum of two columns": lambda key, step: rows(X, STARTS + LENGTHS - 1),
    "a product of numbers and a mask": lambda key, step: rows(X, PADDED * MASK),
    "a difference of two columns": lambda key, step: rows(X, STARTS - LENGTHS[::-1] + 30),
    "a range and the same backwards": lambda key, step: rows(
        X[:8], jnp.arange(8)[::-1] + jnp.arange(8)
    ),
    "two ranges that cancel": lambda key, step: rows(X[:8], jnp.arange(8) - jnp.arange(8) + 7),
    "twice one permutation": lambda key, step: rows(
        X[:8], jax.random.permutation(key, 8) + 7 - jax.random.permutation(key, 8)
    ),
    "even draws": lambda key, step: rows(
        X[:3], jax.lax.rem(2 * jax.random.randint(key, (8,), 0, 9), 4)
    ),
    "a row and its place": lambda key, step: rows(X[:8], ORDER + jnp.arange(3)),
    "a table and its step": lambda key, step: rows(X[:10], (BACK[step] + step)[None]),
    "the quotient and the remainder": folded,
    "halves of a permutation": of_both_halves,
    "a draw": lambda key, step: rows(X, jax.random.randint(key, (8,), 0, ROWS)),
    "a choice": lambda key, step: rows(X, jax.random.choice(key, ROWS, (8,))),
    "a permutation": lambda key, step: rows(X, jax.random.permutation(key, ROWS)[:8]),
    "an epoch": lambda key, step: rows(X, (step * 8 + jnp.arange(8)) % ROWS),
    "an epoch in slices": lambda key, step: (cut(X, (step % 8) * 8, 8), cut(Y, (step % 8) * 8, 8)),
    "a quotient": lambda key, step: (BATCHES[step // 2], Y[:16]),
    "a shuffled epoch": lambda key, step: rows(
        X, cut(jax.random.permutation(jax.random.key(0), ROWS), (step % 8) * 8, 8)
    ),
    "clamped": lambda key, step: (BATCHES[jnp.minimum(step, 7)], Y[:16]),
    "clipped on purpose": lambda key, step: (
        X.at[step * 8 + jnp.arange(8)].get(mode="clip"),
        Y[:8],
    ),
    "chosen": lambda key, step: (BATCHES[jnp.where(step < 8, step, step - 8)], Y[:16]),
    "opposed": lambda key, step: (BATCHES[9 * step - 9 * step + 7], Y[:16]),
    "backwards": lambda key, step: (BATCHES[-1 - step % 8], Y[:16]),
    "from the end": lambda key, step: rows(X, -1 - jnp.arange(8)),
    "by a table": lambda key, step: rows(X, jnp.array([1, 5, 99])[jnp.zeros(8, int)] % ROWS),
    "a constant of a longer table": lambda key, step: rows(
        X, jnp.array([3, 99])[jnp.zeros(8, int)]
    ),
    "within a loop": lambda key, step: jax.lax.fori_loop(
        0, 3, lambda i, b: rows(X, b[1] + i), (X[:8], Y[:8])
    ),
    "with another step": lambda key, step: (cut(X, jnp.clip(step * 8, 0, 56), 8), Y[:8]),
    "a last batch with a mask": lambda key, step: masked(step * 8 + jnp.arange(8)),
    "floats": lambda key, step: rows(
        X, jnp.floor(jax.random.uniform(key, (8,)) * ROWS).astype(int)
    ),
}


@pytest.mark.parametrize("name", PAST)
def test_an_index_past_the_data_is_warned_of(name):
    batch, index = PAST[name]
    with pytest.warns(
        IndexWarning, match=f"problem.train_batch reads index {index} of an axis"
    ) as seen:
        hg.validate(PROBLEM._replace(train_batch=batch), H, HORIZON)
    assert len(seen) == 1 and "\n" not in str(seen[0].message)


@pytest.mark.parametrize("name", INSIDE)
def test_what_stays_inside_is_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(PROBLEM._replace(train_batch=INSIDE[name]), H, HORIZON)


@pytest.mark.parametrize("name", ["rows of a step", "a slice of a step", "a batch of a step"])
def test_a_shorter_horizon_stays_inside(name):
    made = PROBLEM._replace(train_batch=PAST[name][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(made, H, 8)


def test_labels_past_the_outputs_are_warned_of():
    def at(key, step):
        i = jax.random.randint(key, (8,), 0, ROWS)
        return X[i], ONE_BASED[i]

    made = PROBLEM._replace(train_batch=at, valid_batch=lambda key: (X, ONE_BASED))
    with pytest.warns(IndexWarning) as seen:
        hg.validate(made, H, HORIZON)
    texts = [str(w.message) for w in seen]
    assert len(texts) == 2 and all("reads index 3 of an axis of 3" in text for text in texts)
    assert texts[0].startswith("problem.loss") and "count labels from 0" in texts[0]
    wider = partial(loss, num=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(made._replace(loss=wider, objective=wider), H, HORIZON)


LABELS = jnp.where(jnp.arange(ROWS) == 20, 7, Y)  # one odd label, in row 20
IGNORED = jnp.where(jnp.arange(ROWS) % 5 == 0, 255, Y)
KNOWN = IGNORED < 200
TRAIN = jnp.asarray([*range(10), *range(15, 25), 60])
PARTS = {
    "a draw of the first rows": lambda key: jax.random.randint(key, (8,), 0, 24),
    "a draw of some rows": lambda key: jax.random.randint(key, (8,), 10, 24),
    "a permutation of the first rows": lambda key: jax.random.permutation(key, 24)[:8],
    "a draw from a table": lambda key: TRAIN[jax.random.randint(key, (8,), 0, len(TRAIN))],
    "a choice from a table": lambda key: jax.random.choice(key, TRAIN, (8,)),
    "a permuted table": lambda key: jax.random.permutation(key, TRAIN)[:8],
}


def labelled(rows, labels=LABELS):
    """The problem, whose training reads some rows; the others may have any label."""

    def at(key, step):
        i = rows(key)
        return X[i], labels[i]

    return PROBLEM._replace(train_batch=at)


@pytest.mark.parametrize("name", PARTS)
def test_labels_of_the_rows_that_are_read(name):
    with pytest.warns(IndexWarning, match="problem.loss reads index 7 of an axis of 3") as seen:
        hg.validate(labelled(PARTS[name]), H, HORIZON)
    assert len(seen) == 1
    other = LABELS.at[20].set(0).at[40].set(7)  # in a row that is not read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(labelled(PARTS[name], other), H, HORIZON)


def test_labels_of_the_rows_of_every_step():
    rows = lambda key, step: (X[:8], LABELS[step * 8 + jnp.arange(8)])  # noqa: E731
    made = PROBLEM._replace(train_batch=rows)
    with pytest.warns(IndexWarning, match="problem.loss reads index 7 of an axis of 3"):
        hg.validate(made, H, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(made, H, 2)  # 16 rows


def per_example(p, b):
    return optax.softmax_cross_entropy_with_integer_labels(b[0] @ p[:, :3], b[1])


MASKED = {
    "where": lambda p, h, b: jnp.mean(jnp.where(b[1] == 255, 0, per_example(p, b))),
    "a product": lambda p, h, b: jnp.mean((b[1] != 255) * per_example(p, b)),
    "below the number of classes": lambda p, h, b: jnp.mean(
        jnp.where(b[1] < 3, -jnp.take_along_axis(b[0] @ p, b[1][:, None], 1)[:, 0], 0)
    ),
    "a mask of the batch": lambda p, h, b: jnp.sum(b[2] * per_example(p, b)),
    "weights of the batch": lambda p, h, b: jnp.sum(b[3] * per_example(p, b)),
}


@pytest.mark.parametrize("name", MASKED)
def test_labels_that_are_masked_after_they_are_read(name):
    def at(key):
        i = jax.random.randint(key, (8,), 0, ROWS)
        mask = KNOWN if name == "a mask of the batch" else jnp.ones(ROWS)
        weights = (IGNORED[i] != 255) / 8 if name == "weights of the batch" else ()
        return X[i], IGNORED[i], mask[i], weights

    value = lambda p, h, b: MASKED[name](p, h, b) + h["l2"]  # noqa: E731
    made = PROBLEM._replace(
        loss=value, objective=value, train_batch=lambda key, step: at(key), valid_batch=at
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(made, H)
    plain = lambda p, h, b: jnp.mean(per_example(p, b)) + h["l2"]  # noqa: E731
    unmasked = lambda key, step: at(key)[:2]  # noqa: E731
    if not name.endswith("batch"):
        with pytest.warns(IndexWarning, match="problem.loss reads index 255 of an axis of 3"):
            hg.validate(made._replace(loss=plain, train_batch=unmasked), H)


def test_a_study_warns_too():
    space = {"l2": hg.LogReal(1e-3, 1.0)}
    made = PROBLEM._replace(train_batch=PAST["a batch of a step"][0])
    with pytest.warns(IndexWarning, match="problem.train_batch"):
        hg.validate(hg.Task("past", made, space, HORIZON, None, "", True))


PAD, TOKENS, LONG = 5, 6, jnp.asarray([6, 2, 4])
WORDS = jnp.where(jnp.arange(TOKENS) < LONG[:, None], jnp.arange(TOKENS) % PAD, PAD)
HEARD = (WORDS < PAD).astype(jnp.float32)
EMBEDDED = {
    "text": (WORDS, LONG, HEARD),
    "graph": (jnp.asarray([0, 1, 3]), jnp.asarray([1, 2, 3]), jnp.asarray([1.0, 1.0, 0.0])),
    "heads": (jnp.ones((3, 4)), jnp.asarray([1, 2, 3]), jnp.asarray([0, 0, 1])),
}


def next_word(p, words):
    seen = jnp.tanh(p[words[:, :-1]]) @ p[:PAD].T
    return optax.softmax_cross_entropy_with_integer_labels(seen, words[:, 1:])


def heads(p, b):
    of = optax.softmax_cross_entropy_with_integer_labels
    return of(b[0] @ p[:4, :3], b[1]), of(b[0] @ p[:4], b[1])


def passed(p, b, weights, num=3):
    return jax.ops.segment_sum(p[:3][b[0]] * weights, b[1], num)


PADDED_READS = {
    "weights": ("text", lambda p, b: jnp.sum(next_word(p[:PAD], b[0]) * b[2][:, 1:]) / b[2].sum()),
    "a dot product": ("text", lambda p, b: jnp.vdot(next_word(p[:PAD], b[0]), b[2][:, 1:])),
    "lengths": (
        "text",
        lambda p, b: jnp.mean(
            jnp.where((jnp.arange(TOKENS) < b[1][:, None])[..., None], p[:PAD][b[0]], 0)
        ),
    ),
    "weights of edges": ("graph", lambda p, b: jnp.mean(passed(p, b, b[2][:, None], 4) ** 2)),
    "edges that are dropped": ("graph", lambda p, b: jnp.mean(passed(p, b, 1.0) ** 2)),
    "examples that are taken": ("heads", lambda p, b: jnp.sum(heads(p, b)[0][b[2]])),
    "two heads": ("heads", lambda p, b: jnp.mean(jnp.where(b[2] == 0, *heads(p, b)))),
}
UNPADDED_READS = {
    "weights": lambda p, b: jnp.mean(next_word(p[:PAD], b[0])),
    "lengths": lambda p, b: jnp.mean(p[:PAD][b[0]] ** 2),
    "weights of edges": lambda p, b: jnp.mean(passed(p, b, 1.0, 4) ** 2),
    "two heads": lambda p, b: jnp.mean(heads(p, b)[0]) * b[2].sum(),
}


@pytest.mark.parametrize("name", PADDED_READS)
def test_padding_is_masked_by_what_the_batch_brings(name):
    which, value = PADDED_READS[name]
    batch = EMBEDDED[which]
    made = PROBLEM._replace(
        init=lambda key, h: jnp.ones((6, 4)),
        loss=lambda p, h, b: value(p, b) + h["l2"],
        objective=lambda p, h, b: value(p, b),
        train_batch=lambda key, step: batch,
        valid_batch=lambda key: batch,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(made, H)
    if name in UNPADDED_READS:
        plain = made._replace(objective=lambda p, h, b: UNPADDED_READS[name](p, b))
        with pytest.warns(IndexWarning, match="problem.objective reads index"):
            hg.validate(plain, H)


def test_padded_rows_that_weights_of_the_batch_mask():
    order, weights = jnp.asarray([1, ROWS, 2]), jnp.asarray([1.0, 0.0, 1.0])
    batch = lambda key, step: (X[order], Y[:3], weights)  # noqa: E731
    value = lambda p, h, b: jnp.sum(per_example(p, b) * b[2]) + h["l2"]  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(PROBLEM._replace(train_batch=batch, loss=value), H)
    with pytest.warns(IndexWarning, match=f"problem.train_batch reads index {ROWS} of an axis"):
        hg.validate(PROBLEM._replace(train_batch=batch), H)


def test_labels_and_weights_that_are_shuffled_alike():
    whole = (X, IGNORED, KNOWN.astype(jnp.float32))
    batch = lambda key, step: tuple(jax.random.permutation(key, x) for x in whole)  # noqa: E731
    value = lambda p, h, b: jnp.sum(per_example(p, b) * b[2]) + h["l2"]  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(PROBLEM._replace(train_batch=batch, loss=value), H)
    with pytest.warns(IndexWarning, match="problem.loss reads index 255 .* count labels from 0"):
        hg.validate(PROBLEM._replace(train_batch=batch), H)


READ_BY_STEP = {
    "the step": (lambda key, step: step, "the table has 10 entries and the horizon is 50"),
    "a draw": (lambda key, step: jax.random.randint(key, (), 0, 50), "keep them below it"),
}


@pytest.mark.parametrize("name", READ_BY_STEP)
def test_a_table_that_is_read_past_its_end_in_a_loss(name):
    at, words = READ_BY_STEP[name]
    table = jnp.linspace(0.0, 1.0, 10)
    made = PROBLEM._replace(
        train_batch=lambda key, step: (X[:8], Y[:8], at(key, step)),
        loss=lambda p, h, b: loss(p, h, b) * (1 + table[b[2]]),
    )
    with pytest.warns(IndexWarning, match="problem.loss reads index 49 of an axis of 10") as seen:
        hg.validate(made, H, 50)
    assert len(seen) == 1 and words in str(seen[0].message)
    assert "labels" not in str(seen[0].message)


def dropped_out(p, b):
    words = p[:PAD][b[1]]
    return jnp.mean(jnp.where(jax.random.bernoulli(b[2], 0.5, words.shape), words, 0) ** 2)


EIGHT, THIRDS = jnp.arange(8), jnp.arange(8) % 3
FOUND = {
    "a loss that bends": lambda p, b: jnp.mean(per_example(p, b) ** 2),
    "a loss of pairs of examples": lambda p, b: jnp.var(per_example(p, b)),
    "a mixture": lambda p, b: jnp.mean(per_example(p, b) * jax.random.uniform(b[2])),
    "dropout by a key of the batch": dropped_out,
    "edges within the graph": lambda p, b: jnp.sum(passed(p, (b[1], b[3]), 1.0) ** 2),
}


@pytest.mark.parametrize("name", FOUND)
def test_no_mask_is_seen_where_there_is_none(name):
    made = PROBLEM._replace(
        train_batch=lambda key, step: (X[:8], EIGHT, key, THIRDS),
        loss=lambda p, h, b: FOUND[name](p, b) + h["l2"],
    )
    with pytest.warns(IndexWarning, match="problem.loss reads index 7 of an axis of") as seen:
        hg.validate(made, H)
    assert len(seen) == 1
