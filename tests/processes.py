"""Two processes that jax makes one machine of."""

import socket
import subprocess
import sys


def two(script, tmp_path, timeout=300):
    """Run a script as two processes, with a free port and its own number as arguments; return what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    errors, started = [tmp_path / f"{rank}.txt" for rank in range(2)], []
    for rank, path in enumerate(errors):
        with path.open("w") as file:  # a pipe that is not read yet would fill, and stop both
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", script, port, str(rank)],
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                )
            )
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    complaints = [path.read_text()[-2000:] for path in errors]
    assert [process.returncode for process in started] == [0, 0], complaints
    return said
