"""What people install holds the whole package: every engine, the kit, the demo, and nothing else.

The wheel, the sdist, the wheel made of the sdist, an editable install, and a zip archive of the
repository, which is what a code host offers and which keeps no symbolic link once pip unpacks it.
"""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = next(
    (folder for folder in Path(__file__).resolve().parents if (folder / "setup.cfg").exists()), None
)
pytestmark = [
    pytest.mark.any_python,
    pytest.mark.skipif(ROOT is None, reason="needs the sources: no setup.cfg above the tests"),
]

# Run where nothing but the installed package can be imported, besides what this Python has.
IMPORTS = """
import importlib, os, pkgutil, sys, tempfile
from importlib.metadata import entry_points, version

expected = sys.argv[1]
import kvreplay, kvreplay.testing, kvreplay.demo, kvreplay.cli
from kvreplay import open_store

found = os.path.realpath(os.path.dirname(kvreplay.__file__))
assert found == os.path.realpath(expected), found
assert os.path.exists(os.path.join(found, "py.typed"))
for module in pkgutil.walk_packages(kvreplay.__path__, "kvreplay."):
    if module.name.startswith("kvreplay.backends"):
        importlib.import_module(module.name)
with tempfile.TemporaryDirectory() as folder:
    for url in ("memory:", f"filesystem:{folder}/files", f"lmdb:{folder}/lmdb"):
        with open_store(url) as store:
            store.write("namespace", "", "key", b"value")
            assert store.read("namespace", "", "key") == b"value"
print(version("kvreplay"), *(each.value for each in entry_points(name="kvreplay")))
"""


def run(*command: str | Path, cwd: Path) -> str:
    # Neither coverage's settings nor those of a person's pip reach what is built and installed.
    settings = ("COVERAGE", "PIP_", "PYTHONPATH", "PYTHONSAFEPATH")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(settings)},
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources(root: Path) -> list[Path]:
    """Return what belongs to the repository: files and symbolic links, relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        # No git, or an unpacked archive: then all but what tools leave behind.
        left_behind = ("build", "dist", "__pycache__")
        paths = (path.relative_to(root) for path in root.rglob("*"))
        names = [
            path
            for path in paths
            if not any(part.startswith(".") or part in left_behind for part in path.parts)
            and not any(part.endswith(".egg-info") for part in path.parts)
            and ((root / path).is_symlink() or (root / path).is_file())
        ]
    else:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
    return [path for path in names if (root / path).is_symlink() or (root / path).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that building leaves nothing in the one that is worked on."""
    assert ROOT is not None
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    for path in sources(ROOT):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path, follow_symlinks=False)
    return copy


def package_of(checkout: Path) -> set[str]:
    """Return the files of the package, as they are named in an archive."""
    files = [path for path in sources(checkout) if path.parts[0] == "kvreplay"]
    return {path.as_posix() for path in files}


def holds_the_package_alone(names: set[str], checkout: Path) -> None:
    expected = package_of(checkout)
    assert {
        *("kvreplay/__init__.py", "kvreplay/py.typed", "kvreplay/backends/memory.py"),
        *("kvreplay/backends/filesystem/__init__.py", "kvreplay/backends/lmdb/__init__.py"),
        *("kvreplay/testing/__init__.py", "kvreplay/demo/__init__.py", "kvreplay/cli/__init__.py"),
    } <= expected
    assert {name for name in names if name.startswith("kvreplay/")} == expected
    assert not [name for name in names if name.startswith(("tests", "backends", "benchmarks"))]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def build_wheel(source: Path, folder: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def imports_all(python: str | Path, package: Path, folder: Path, *search: Path) -> None:
    """Import all from a package; with ``search``, folders to find it in before any other."""
    script = f"import sys; sys.path[:0] = {[str(each) for each in search]!r}\n{IMPORTS}"
    said = run(python, "-I", "-W", "error", "-c", script, package, cwd=folder)
    assert said.split()[-1] == "kvreplay.cli:main", said


class Environment:
    """A new virtual environment that has what this Python has, behind what is installed in it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self._folder = folder
        self.python = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        # The last name, so that an editable install's own file comes before it.
        (self.packages / "zz_of_this_python.pth").write_text("\n".join(ours))

    def install(self, *what: str | Path) -> None:
        pip = (self.python, "-m", "pip", "-q", "install", "--ignore-installed")
        run(*pip, "--no-compile", "--no-deps", "--no-build-isolation", *what, cwd=self._folder)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def test_the_extra_demo_brings_the_command() -> None:
    assert ROOT is not None
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = {
        name: set(lines.split("\n")) - {""}
        for name, lines in settings["options.extras_require"].items()
    }
    assert extras["cli"]
    assert extras["cli"] < extras["demo"]


def test_the_wheel(checkout: Path, tmp_path: Path) -> None:
    wheel = build_wheel(checkout, tmp_path)
    holds_the_package_alone(names_in(wheel), checkout)
    site = unpacked(wheel, tmp_path / "site")
    imports_all(sys.executable, site / "kvreplay", tmp_path, site)


def test_the_sdist_and_the_wheel_made_of_it(checkout: Path, tmp_path: Path) -> None:
    build = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=checkout)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = [member for member in archive.getmembers() if not member.isdir()]
    assert all(member.isfile() for member in files), "a link, which tools follow badly"
    holds_the_package_alone({member.name.partition("/")[2] for member in files}, checkout)

    wheel = build_wheel(sdist, tmp_path)
    holds_the_package_alone(names_in(wheel), checkout)
    site = unpacked(wheel, tmp_path / "site")
    imports_all(sys.executable, site / "kvreplay", tmp_path, site)


def test_an_editable_install(checkout: Path, environment: Environment, tmp_path: Path) -> None:
    environment.install("--editable", checkout)
    imports_all(environment.python, checkout / "kvreplay", tmp_path)


def test_a_zip_archive_of_the_repository(
    checkout: Path, environment: Environment, tmp_path: Path
) -> None:
    """As ``git archive --format=zip`` writes it: a symbolic link is a file with the link's target."""
    archive = tmp_path / "kvreplay.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for path in sources(checkout):
            entry = zipfile.ZipInfo(f"kvreplay-main/{path.as_posix()}")
            if (checkout / path).is_symlink():
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                written.writestr(entry, os.readlink(checkout / path))
            else:
                written.writestr(entry, (checkout / path).read_bytes())
    environment.install(archive)
    installed = environment.packages / "kvreplay"
    files = {
        path.relative_to(environment.packages).as_posix()
        for path in installed.rglob("*.*")
        if "__pycache__" not in path.parts
    }
    holds_the_package_alone(files, checkout)
    imports_all(environment.python, installed, tmp_path)
