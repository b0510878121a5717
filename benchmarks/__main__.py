"""Run a benchmark: `python -m benchmarks NAME [--quick] [--out FILE] [--data DIR] [--torch-python PATH]`."""

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path

from benchmarks import tables
from benchmarks.record import Results, accelerator, pin

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "faults": "studies killed, out of power or disk, damaged, unread, raced for and read while written",
    "load": "100,000 trials, 2,000 dimensions, 10,000 members, 64 studies at once, callbacks that hang",
    "storage": "acknowledged trials a second, beside the storages of Optuna",
    "compat": "whether the suite passes: oldest and newest Python and jax, x64 on and off",
    "hypergradient": "cost and agreement of every reverse scheme, beside TorchOpt, higher and PyTorch",
    "models": "the same on a transformer, a CNN, a ResNet and an MLP: trace, compile, run, memory",
    "first_answer": "seconds to the first generation and the first step, beside one compilation",
    "bilevel": "time to the solution of a stochastic quadratic, beside jaxopt's L-BFGS",
    "controller": "one policy for architecture and optimizer: with and without the response, DARTS, CE, PBT",
    "chaotic": "hypergradient descent from a chaotic start: reverse, truncated, PES, NRES, ES",
    "odds": "hypergradient of a dropout rate: pathwise, relaxed at three temperatures, evolved",
    "precision": "what sixteen bits take of a hypergradient, and whether the certificate says so",
    "many": "32 hypergradients at once, and one device a core, against a loop",
    "attribution": "scores of training examples, judged by training again without some of them",
    "hypercleaning": "finding flipped labels by tuning a weight for every example",
    "configurations": "576 small networks a data set, trained and measured, for the two after this one",
    "fghpo": "flatness-guided search with every measure beside plain halving and others, at equal cost",
    "pools": "the same on Bayesmark's space and on images, in pools of random settings",
    "own_batches": "the same networks after an epoch, measured at each setting's own batch; further measures",
    "flatness_theory": "Theorem 1 checked, and what each measure of flatness says of generalization",
    "runtime": "what a search by each measure costs in seconds, beside other searches",
    "frobenius": "exact Hessian norms beside jax.hessian, torch.func, curvlinops and PyHessian",
    "implicit": "cost and agreement of implicit hypergradients, beside jaxopt, TorchOpt and PyTorch",
    "population": "trials a second: one program for all trials, beside Optuna with one jitted training a trial",
    "scaling": "weak scaling of a population over devices, and what a generation sends between them",
    "search_quality": "regret of searchers and schedulers, beside Optuna's samplers",
    "cehpo_questions": "the questions that the paper of cross-entropy search leaves open",
    "schedules": "schedules by descent against searches of the best parametric family, at equal cost",
    "invocations": "`make tune` with ten seeds: descent against random search, and its schedules smoothed",
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run what is not yet in the results file, print its table."""
    names = "\n".join(f"  {name:14s} {text}" for name, text in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure hypergrad side by side with its peers.",
        epilog=f"benchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it works")
    parser.add_argument(
        "--out",
        type=Path,
        help="results file; cases in it are not run again (default: results/NAME.jsonl, and beside it "
        "results/NAME-DEVICE.jsonl on an accelerator)",
    )
    parser.add_argument(
        "--data",
        help="folder of the MNIST files, for 'attribution', 'schedules', 'hypercleaning', 'implicit' and "
        "'pools' (SVHN too); of the OpenML tables, for 'configurations', 'own_batches' and 'runtime'",
    )
    parser.add_argument(
        "--torch-python",
        help="Python with torch, torchopt and higher (pip install torch torchopt higher); no peers without",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=1,
        help="processor cores to use (default: 1; small steps are fastest so)",
    )
    options = parser.parse_args(arguments)
    if options.cores < 1:
        parser.error(f"--cores is {options.cores}, expected at least 1; leave it out for one")
    for name in ("data", "torch_python"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} is {path!r}, which is not there; check the path")
    pin(options.cores)
    module = import_module(f"benchmarks.{options.name}")  # imports jax, after the cores are set
    device = re.sub(r"\W+", "_", accelerator())
    kept = RESULTS / f"{'-'.join(filter(None, (options.name, device)))}.jsonl"
    out = options.out or (RESULTS / f"{options.name}-quick.jsonl" if options.quick else kept)
    settings = {
        "quick": options.quick,
        "cores": options.cores,
        "peers": options.torch_python is not None,
        "data": options.data is not None,
    }
    try:
        results = Results(out, options.name, settings)
        module.run(results, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; finished cases are in {out}", file=sys.stderr)
        return 130
    print(module.table(results))
    if out == kept:
        tables.write()
    print(f"\n{len(results.cases)} cases in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
