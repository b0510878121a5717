"""Any CSV file of the user's, or one of scikit-learn's small tables: an MLP trained by Adam."""

from pathlib import Path

import numpy as np
import optax

from hypergrad.core.checks import check_whole
from hypergrad.core.flax import from_linen
from hypergrad.problem import Task
from hypergrad.space import Dimension, LogReal, Real, Sequence, schedule
from models.mlp import MLP
from tasks import data as files
from tasks.supervised import cross_entropy, squared_error, supervised, take

BUNDLED = ("breast_cancer", "wine", "iris", "diabetes")


def task(
    *,
    data: str = "breast_cancer",
    label: str | None = None,
    kind: str | None = None,
    horizon: int = 200,
    batch_size: int = 32,
    width: int = 32,
    seed: int = 0,
    delimiter: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    dates: str | None = None,
    missing: list[str] | None = None,
    kinds: dict[str, str] | None = None,
) -> Task:
    """Tune the learning-rate schedule, decay, momentum and label smoothing of an MLP on a table.

    Args:
        data: path of a CSV file, or breast_cancer, wine, iris, diabetes.
        label: name of the label column of a CSV file; the last one where None.
        kind: "classification" or "regression"; told from the labels where None.
        horizon: training steps.
        batch_size: examples a step.
        width: hidden units.
        seed: of the split (60 % training, 20 % validation, 20 % test, stratified by class).
        delimiter: one character between the cells of a CSV file; told from the file where None.
        encoding: of the file, e.g. "cp1252"; UTF-8, or that of its byte order mark, where None.
        decimal: "." or ",", where numbers read both ways.
        dates: "day" or "month", what stands first where dates read both ways.
        missing: words that are missing in every column; where None, the usual ones in columns of numbers.
        kinds: how columns are taken, by name: "number" or "time" (other cells are missing), "text", "skip".
    """
    check_whole("horizon", horizon)
    check_whole("width", width)
    dialect = files.Dialect(delimiter, encoding, decimal, dates, missing, kinds or {})
    table = _table(data, label, dialect)
    labels, names = files.encode_labels(table, kind)
    parts = files.split(len(labels), (0.2, 0.2), seed, None if names is None else labels)
    if names is None:
        known = labels[parts[0]].astype(np.float64)
        labels = ((labels - known.mean()) / (known.std() or 1.0)).astype(np.float32)
    inputs = files.encode(table, parts[0])
    model = from_linen(MLP((width, 1 if names is None else len(names))))
    loss = squared_error if names is None else cross_entropy

    def optimizer(hparams):
        return optax.chain(
            optax.scale_by_adam(b1=hparams["b1"]),
            optax.add_decayed_weights(hparams["decay"]),
            optax.scale_by_learning_rate(schedule(hparams["lr"])),
        )

    problem, score = supervised(model, take(inputs, labels, parts), loss, optimizer, batch_size)
    return Task(
        name="tabular",
        problem=problem,
        space=_space(horizon, names is not None),
        horizon=horizon,
        test=score,
        metric="squared error (standardized)" if names is None else "accuracy",
        higher_is_better=names is not None,
        description=f"An MLP of {width} units on {len(labels)} rows with {inputs.shape[1]} encoded features.",
        notes={f"Columns of {Path(data).name}": table.taken} if table.taken else None,
    )


def _space(horizon: int, classify: bool) -> dict[str, Dimension]:
    space = {
        "lr": Sequence(LogReal(1e-4, 1e-1, default=3e-3), horizon),
        "decay": LogReal(1e-6, 1.0, default=1e-3),
        "b1": Real(0.0, 0.99, default=0.9),
    }
    return space | ({"label_smoothing": Real(0.0, 0.3, default=0.01)} if classify else {})


def _table(data: str, label: str | None, dialect: files.Dialect) -> files.Table:
    if data not in BUNDLED:
        return files.read_csv(data, label, dialect)
    if label is not None:
        raise ValueError(
            f"label is {label!r}, expected none for the bundled {data!r}, whose label is known; "
            "leave it out, or name a CSV file as data"
        )
    given = [name for name, value in dialect._asdict().items() if value]
    if given:
        raise ValueError(
            f"{given[0]} is given with the bundled {data!r}, expected a CSV file; leave it out"
        )
    return _bundled(data)


def _bundled(name: str) -> files.Table:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(
            f"data {name!r} needs scikit-learn, which is not installed; "
            "install the extra: pip install 'hypergrad-jax[zoo]'"
        ) from error
    bunch = getattr(datasets, f"load_{name}")()
    columns = [column.astype(np.float64) for column in bunch.data.T]
    return files.Table(
        list(map(str, bunch.feature_names)), columns, "target", bunch.target.astype(str)
    )
