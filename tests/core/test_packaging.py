"""What people install holds the whole package: every engine, the kit, the demo, and nothing else.

The wheel, the wheel made of the sdist, an editable install, and a zip archive of the
repository, which is what a code host offers and which keeps no symbolic link once pip unpacks it.
The sdist holds the tests too. And what an index shows of the package: its metadata, and the README.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import kvreplay

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


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What the wheel says of itself, as an index reads it."""
    (name,) = (name for name in names_in(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(name))


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


def test_the_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    holds_the_package_alone(names_in(wheel), checkout)
    site = unpacked(wheel, tmp_path / "site")
    imports_all(sys.executable, site / "kvreplay", tmp_path, site)


def test_the_version_is_told_once(metadata: Message) -> None:
    assert metadata["Version"] == kvreplay.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", kvreplay.__version__)
    assert ROOT is not None
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([\d.]+)", changes, re.MULTILINE)[0] == kvreplay.__version__


def test_what_an_index_is_told(metadata: Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    urls = dict(each.split(", ") for each in metadata.get_all("Project-URL", ()))
    assert set(urls) == {"Documentation", "Source", "Issues", "Changelog"}
    classifiers = metadata.get_all("Classifier", ())
    assert "Typing :: Typed" in classifiers
    assert not [each for each in classifiers if each.startswith("License ::")]


def test_what_stores_the_bytes_has_an_upper_bound(metadata: Message) -> None:
    needed = [each for each in metadata.get_all("Requires-Dist", ()) if "extra" not in each]
    assert {re.split(r"[<>=!~]", each)[0] for each in needed} == {"attrs", "lmdb", "msgpack"}
    assert all("<" in each for each in needed if not each.startswith("attrs"))


# Where a link of the README leads to, and the file of this repository that it means.
_OURS = "kvreplay/kvreplay"
_PLACES = (
    (re.compile(r"https://kvreplay\.readthedocs\.io/en/stable/(.+)\.html(?:#(.+))?"), "docs/{}.md"),
    (re.compile(rf"https://github\.com/{_OURS}/blob/main/([^#]+)(?:#(.+))?"), "{}"),
    (re.compile(rf"https://raw\.githubusercontent\.com/{_OURS}/main/(.+\.svg)()"), "{}"),
)
_HOSTS = rf"//kvreplay\.|/{_OURS}\b"
_LINK = re.compile(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"|^\[[^]]+\]: *(\S+)", re.MULTILINE)


def complaints_about(text: str, root: Path) -> list[str]:
    """Return the links of a README that do not work wherever it is shown."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = ["".join(groups) for groups in _LINK.findall(text)]
    return [f"{link}: {wrong}" for link in links if (wrong := _complaint_about(link, text, root))]


def _complaint_about(link: str, text: str, root: Path) -> str | None:
    if link.startswith("#"):
        return None if link[1:] in anchors_in(text) else "there is no such heading"
    for pattern, form in _PLACES:
        if found := pattern.fullmatch(link):
            path, anchor = root / form.format(found[1]), found[2]
            if not path.is_file():
                return f"there is no file {path.relative_to(root)}"
            if anchor and anchor not in anchors_in(path.read_text(encoding="utf-8")):
                return "there is no such heading"
            return None
    others = link.startswith("https://") and not re.search(_HOSTS, link)
    return None if others else "not absolute, or not where this repository is shown"


def anchors_in(text: str) -> set[str]:
    """Return the headings of a page, as links name them."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def test_each_link_of_the_description_works_on_an_index(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload()
    assert ROOT is not None
    assert isinstance(description, str)
    assert len(_LINK.findall(description)) > 10
    assert complaints_about(description, ROOT) == []


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("docs/format.md", "not absolute"),
        ("CHANGELOG.md", "not absolute"),
        ("http://example.org", "not absolute"),
        ("#no-such-heading", "no such heading"),
        ("https://kvreplay.readthedocs.io/en/latest/format.html", "not where"),
        ("https://kvreplay.readthedocs.io/en/stable/gone.html", "no file docs/gone.md"),
        ("https://kvreplay.readthedocs.io/en/stable/guarantees.html#gone", "no such heading"),
        ("https://github.com/kvreplay/kvreplay/blob/main/GONE.md", "no file GONE.md"),
        ("https://raw.githubusercontent.com/kvreplay/kvreplay/main/docs/gone.svg", "no file"),
        ("https://raw.githubusercontent.com/kvreplay/kvreplay/main/docs/bench-hit.svg", None),
        ("https://kvreplay.readthedocs.io/en/stable/guarantees.html#migrate", None),
        ("https://kvreplay.readthedocs.io/en/stable/http/flask.html", None),
        ("https://github.com/kvreplay/kvreplay/blob/main/CONTRIBUTING.md", None),
        ("https://example.org/page", None),
        ("#a-heading-of-its-own", None),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link: str, complaint: str | None) -> None:
    assert ROOT is not None
    found = complaints_about(f"## A heading, of its own\n\n![a picture]({link})\n", ROOT)
    assert len(found) == (complaint is not None)
    assert not found or complaint in found[0]


def test_the_sdist_and_the_wheel_made_of_it(checkout: Path, tmp_path: Path) -> None:
    build = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=checkout)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = [member for member in archive.getmembers() if not member.isdir()]
    assert all(member.isfile() for member in files), "a link, which tools follow badly"
    names = {Path(member.name.partition("/")[2]) for member in files}
    # The tests and all that they look at: whoever packages this for others can run them.
    assert {name for name in names if not name.parts[0].startswith((".", "kvreplay.egg-info"))} == {
        *sources(checkout),
        Path("PKG-INFO"),
    } - {Path("backends")}

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
