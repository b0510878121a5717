"""A model of a disk that loses its power: what was not waited for may be there, in part, or not at all.

A study runs in a folder while every call that changes names or waits for the disk (`os.fsync`, `os.replace`,
`os.unlink`, `os.ftruncate`, `os.mkdir`, `os.write`) is watched. After each of them the power may go. Then

- a file holds, page by page of 512 bytes, what it held when it was last waited for, or anything since,
- a name is what it was when its folder was last waited for, or anything that it has been since,

and nothing more is promised: a rename without a wait for its folder may not have happened, a file that was
renamed before it was waited for may be empty, a new folder that its parent does not know is gone.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE = 512
NOTHING = -1
"""Number in the place of a file's where a name names none."""
CALLS = ("fsync", "replace", "rename", "unlink", "remove", "ftruncate", "mkdir", "write")

Inode = int


class Disk:
    """What a disk promises of the folders and files below one place.

    Args:
        root: Place, which is on the disk itself.
        draw: Generator that decides what is kept.
    """

    def __init__(self, root: Path, draw: random.Random):
        self.root = root
        self.draw = draw
        self.names: dict[tuple[Inode, str], list[Inode]] = {}
        self.contents: dict[Inode, list[bytes]] = {}
        self.folders: set[Inode] = {root.stat().st_ino}
        self.look()

    def look(self) -> None:
        """Note what every name is now, and what every file holds."""
        found: dict[tuple[Inode, str], Inode] = {}
        for place, _, _ in os.walk(self.root):
            folder = os.stat(place).st_ino
            for entry in os.scandir(place):
                inode = entry.inode()
                found[folder, entry.name] = inode
                if entry.is_dir():
                    self.folders.add(inode)
                else:
                    self._note(inode, Path(entry.path).read_bytes())
        for name in {*self.names, *found}:
            past = self.names.setdefault(name, [NOTHING])  # a name is new until its folder is kept
            now = found.get(name, NOTHING)
            if past[-1] != now:
                past.append(now)

    def _note(self, inode: Inode, data: bytes) -> None:
        past = self.contents.setdefault(inode, [b""])
        if past[-1] != data:
            past.append(data)

    def waited(self, fd: int) -> None:
        """Note that the disk has what a descriptor stands for: the bytes of a file, the names of a folder."""
        inode = os.fstat(fd).st_ino
        if inode in self.folders:
            for (folder, _), past in self.names.items():
                if folder == inode:
                    del past[:-1]
        elif inode in self.contents:
            del self.contents[inode][:-1]

    def after_power_loss(self, place: Path) -> None:
        """Write what a disk may hold if the power goes now, into a new folder."""
        place.mkdir()
        self._write(self.root.stat().st_ino, place)

    def _write(self, folder: Inode, place: Path) -> None:
        for (parent, name), past in self.names.items():
            if parent != folder:
                continue
            inode = self.draw.choice(past)
            if inode in self.folders:
                (place / name).mkdir()
                self._write(inode, place / name)
            elif inode != NOTHING:
                (place / name).write_bytes(self._pages(self.contents[inode]))

    def _pages(self, past: list[bytes]) -> bytes:
        """Mix the pages of what a file has held; a page that none of it has is zeros, up to the size kept."""
        size = len(self.draw.choice(past))
        pages = []
        for start in range(0, size, PAGE):
            kept = self.draw.choice(past)[start : start + PAGE]
            pages.append(kept.ljust(min(PAGE, size - start), b"\0"))
        return b"".join(pages)[:size]


@contextlib.contextmanager
def watched(disk: Disk, lose: Callable[[], Any]) -> Iterator[None]:
    """Let a disk watch this process's calls, and call `lose` after each of them, before its caller goes on."""
    real = {name: getattr(os, name) for name in CALLS}

    def watch(name: str) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if name == "fsync":
                disk.look()
                done = real[name](*args, **keywords)
                disk.waited(args[0])
            else:
                done = real[name](*args, **keywords)
                disk.look()
            with contextlib.ExitStack() as undone:  # what `lose` writes is not watched
                _put(real)
                undone.callback(_put, ours)
                lose()
            return done

        return call

    ours = {name: watch(name) for name in CALLS}
    _put(ours)
    try:
        yield
    finally:
        _put(real)


def _put(calls: dict[str, Callable[..., Any]]) -> None:
    for name, call in calls.items():
        setattr(os, name, call)
