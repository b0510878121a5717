"""A peer in a process of its own: both ends of the pipe, one JSON line each way.

Both ends import this file, and the other end has a Python in which there is no jax: it needs nothing else.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Worker:
    """This end; what goes wrong at the other is a `RuntimeError` here.

    Attributes:
        made: Answer to the first request, which makes the case.

    Args:
        python: Python of the other end.
        script: File of this folder that ends in `serve`, or a module of it, `benchmarks.NAME`.
        request: First one.
    """

    def __init__(self, python: str, script: str, request: Any):
        folder = Path(__file__).parent
        file = [str(folder / script)] if script.endswith(".py") else ["-m", script]
        self.process = subprocess.Popen(
            [python, "-W", "ignore", *file],
            cwd=folder.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.made = self.ask(request)
        except RuntimeError:
            self.__exit__()
            raise

    def ask(self, request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def serve(make: Callable[[Any], Any], about: dict[str, Any]) -> None:
    """Be the other end: make a case of the first request, say what it is about, `run` all later ones."""
    case = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if case is None:
                case, answer = make(request), about
            else:
                answer = case.run(request)
        except Exception as error:  # a peer may not be installed, or not know an option
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)
