"""Compiled programs that the command line keeps on disk, so that the next run need not compile them again."""

import contextlib
import hashlib
import json
import os
import platform
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hypergrad.cli.lines import say

VARIABLE = "HYPERGRAD_CACHE"
"""Environment variable with the folder of compiled programs, or `OFF`."""

OFF = "off"

MAX_KEPT = 2**30
"""Size above which the programs that were written first are removed, until half of it is left."""

_MAX_TIMES = 500
_SUFFIX = "-cache"  # of the files that jax writes


def keep_programs(folder: str | None, off: bool) -> Path | None:
    """Tell jax, before it is imported, where to keep compiled programs; say so in one line where it cannot.

    A program fits one type of processor and one version of jax, so each has a folder of its own. What jax loads
    from there is run: the folder is this user's alone.

    Args:
        folder: Folder that the user names. Where None, that of `HYPERGRAD_CACHE`; where that is not set either,
            the one that jax's own `JAX_COMPILATION_CACHE_DIR` names, or `~/.cache/hypergrad`.
        off: Whether to keep none.

    Returns:
        The folder of this type of processor; None where programs are not kept, or where jax's variable says.
    """
    wanted = folder or os.environ.get(VARIABLE) or ""
    if off or wanted.lower() == OFF:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return None
    if not wanted and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    place = (Path(wanted).expanduser() if wanted else _usual()) / _kind()
    try:
        _prepare(place)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        say(
            f"hypergrad: compiled programs are not kept, because {str(place)[:200]!r} cannot be used "
            f"({reason}); name another folder with --cache, or pass --no-cache",
            error=True,
        )
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return place


def _usual() -> Path:
    """Return the folder of hypergrad among the caches of this user."""
    named = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "hypergrad"


def _kind() -> str:
    """Name the type of processor, whose instructions XLA uses, and the versions of jax."""
    about = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        about += list(dict.fromkeys(x for x in lines if x.startswith(wanted)))
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}-jax-{version('jax')}-{version('jaxlib')}"


def _prepare(place: Path) -> None:
    """Make the folder if it is not there, and try to write into it.

    Raises:
        OSError: where it cannot be made or written.
        ValueError: where others may write into it.
    """
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    for one in (place.parent, place):
        about = one.stat()
        open_to_all = about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX
        if open_to_all or about.st_uid not in (0, os.getuid()):
            raise ValueError("others can write into it")
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"x")
    _prune(place)


def _prune(place: Path) -> None:
    """Remove the oldest programs where they are too many; one that another process removes is no error."""
    found = []
    for path in place.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            about = path.stat()
            found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    if total <= MAX_KEPT:
        return
    for _, size, path in sorted(found):
        if total <= MAX_KEPT // 2:
            return
        path.unlink(missing_ok=True)
        total -= size


class FirstStep:
    """How long the first step of a study took, which compiles, and how long it took the last time.

    Args:
        folder: Folder of compiled programs, where the times are kept; None where they are not.
        description: Content of `study.json`.
    """

    def __init__(self, folder: Path | None, description: dict[str, Any]):
        names = ("task", "task_arguments", "horizon", "settings")
        same = {name: description.get(name) for name in names}
        self._name = hashlib.sha256(json.dumps(same, default=str).encode()).hexdigest()[:16]
        self._file = None if folder is None else folder / "first_steps.json"

    @property
    def last(self) -> float | None:
        """Return the seconds of the last time; None where nothing is known."""
        seconds = self._read().get(self._name)
        return seconds if isinstance(seconds, float) else None

    def note(self, seconds: float) -> None:
        """Keep the seconds for the next time, where there is a folder; that of other studies are kept, too."""
        if self._file is None:
            return
        times = {**self._read(), self._name: float(seconds)}
        kept = dict(list(times.items())[-_MAX_TIMES:])
        with contextlib.suppress(OSError):
            fd, name = tempfile.mkstemp(dir=self._file.parent)
            with os.fdopen(fd, "w") as file:
                json.dump(kept, file)
            os.replace(name, self._file)

    def _read(self) -> dict[str, Any]:
        found = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = None if self._file is None else json.loads(self._file.read_bytes())
        return found if isinstance(found, dict) else {}
