"""Root becomes the user who owns a store, for the rest of the process.

A command that is run as root beside a service could leave files that the service cannot open.
"""

from __future__ import annotations

import itertools
import os
import pwd
from collections.abc import Iterator

from kvreplay.errors import ConfigError

__all__ = ["acting_as", "become_owner"]

_MANY = 100  # entries of a folder that are looked at

_became: list[str] = []


def acting_as() -> str | None:
    """Return the user whom this process has become; ``None``: it is who it was."""
    return _became[-1] if _became else None


def become_owner(*paths: str) -> None:
    """If this is root, become the user to whom these stores belong, or the folders for new ones.

    A store belongs to who owns its files, even if its folder is root's.

    Raises:
        ConfigError: they belong to several users besides root, or root cannot become that user.
    """
    if os.geteuid() != 0:
        return
    owners: dict[int, int] = {}
    for path in paths:
        for found in _parts_of(path):
            if found.st_uid:
                owners.setdefault(found.st_uid, found.st_gid)
    if len(owners) > 1:
        names = " and ".join(_name(uid) for uid in sorted(owners))
        raise ConfigError(
            f"the files belong to {names}; nothing was done, since files of the wrong user would be"
            " left behind: run the command as a user who may use all of them"
        )
    for uid, gid in owners.items():
        _become(uid, gid)


def _parts_of(path: str) -> Iterator[os.stat_result]:
    """Yield what is known of a store's files; if there are none, of the folder for a new one."""
    there = False
    for part in (path, f"{path}.kvreplay", f"{path}-kvreplay-lock"):
        try:
            yield os.stat(part)
        except OSError:
            continue
        there = True
        try:
            with os.scandir(part) as entries:
                for entry in itertools.islice(entries, _MANY):
                    yield entry.stat(follow_symlinks=False)
        except OSError:
            pass  # it is a file, or goes away
    while not there:
        path = os.path.dirname(path)
        try:
            yield os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        there = True


def _become(uid: int, gid: int) -> None:
    name = _name(uid)
    if not _can_read_code(name, uid, gid):
        raise ConfigError(
            f"the store belongs to {name}, who may not read this Python; nothing was done, since"
            f" files of root's would be left behind: run the command as {name}, by a Python that"
            " others may read"
        )
    try:
        os.initgroups(name, gid)
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        raise ConfigError(
            f"the store belongs to {name}, whom this process cannot become ({error.strerror});"
            f" nothing was done, since files of root's would be left behind: run it as {name}"
        ) from error
    _became.append(name)


def _can_read_code(name: str, uid: int, gid: int) -> bool:
    """Say whether a user may read the modules that are not imported yet."""
    groups = os.getgroups()
    os.initgroups(name, gid)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        return all(os.access(each, os.R_OK, effective_ids=True) for each in (os.__file__, __file__))
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
