"""The first command of a user, ten times: does descent on digits beat random search, and by how much?

Every invocation is `make tune` with another seed: 403 hyperparameters by descent, scout included, against the
expectation of random search over constants at equal cost, both judged on the same fresh trainings, more of them
than `make tune` takes. The full run takes about five minutes.
"""

import argparse
import warnings

import numpy as np

import hypergrad as hg
from benchmarks.record import Figure, Results, markdown
from benchmarks.schedules import difference, interval, judge, signed_rank, smoothed
from tasks import digits

NUM_SEEDS = 10
NUM_JUDGE = 48
"""Number of fresh trainings by which each way is judged."""
WAYS = ("default", "random", "tuned")


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every seed that is not in the results yet."""
    task = digits.task(horizon=20, width=8) if options.quick else digits.task()
    budget, name = (20, "digits, T = 20") if options.quick else (60, "digits, T = 200")
    done = results.cases.get(name, {}).get("tuned", {}).get("validation loss", [])
    for seed in range(len(done), 1 if options.quick else NUM_SEEDS):
        print(f"{name}, seed {seed} ...", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = hg.tune(task, budget=budget, seed=seed, eval_seeds=NUM_JUDGE)
        results.add(name, figures_of(task, study, seed))


def figures_of(task: hg.Task, study: hg.Study, seed: int) -> list[Figure]:
    """Read what a study says of every way, and judge its schedules when they are smoothed."""
    assert study.result is not None
    found = study.result["configurations"]
    figures = []
    for way in WAYS:
        figures += [
            Figure(way, "validation loss", float(found[way]["valid"]["mean"]), "nats", seed),
            Figure(way, "test accuracy", float(found[way]["test"]["mean"]), "fraction", seed),
        ]
    luck = float(found["random"]["draws_std"])
    figures.append(Figure("random", "standard deviation over draws", luck, "nats", seed))
    tuned = found["tuned"]["hparams"]
    both = {"tuned, as it is": tuned, "tuned, smoothed": smoothed(task.space, tuned)}
    figures += judge(task, both, NUM_JUDGE, seed)
    steps = np.abs(np.diff(np.log(np.asarray(tuned["lr"]))))
    figures.append(Figure("tuned", "change of the rate a step", float(steps.mean()), "share", seed))
    return figures


def table(results: Results) -> str:
    """Write means with 95 % intervals over seeds, and the differences to what was tuned."""
    parts = []
    for name, methods in results.cases.items():
        rows = []
        for way, found in methods.items():
            base = methods["tuned, as it is" if "," in way else "tuned"]
            row = [way]
            for metric in ("validation loss", "test accuracy"):
                lost = np.subtract(found[metric], base[metric])
                row.append("{:.4f} ± {:.4f}".format(*interval(found[metric])))
                row.append(difference(lost.mean(), signed_rank(lost)))
            rows.append(row)
        luck = np.mean(methods["random"]["standard deviation over draws"])
        rough = np.mean(methods["tuned"]["change of the rate a step"])
        head = (
            f"**{name}**, {len(methods['tuned']['test accuracy'])} seeds; the best of random search varies by "
            f"{luck:.4f} from draw to draw; the learned rate changes by {100 * rough:.1f} % a step"
        )
        header = ["way", "validation loss", "above tuned", "test accuracy", "above tuned"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)
