"""How Sphinx makes the site of these pages: ``tox -e docs``."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

project = "kvreplay"
author = "The kvreplay maintainers"
copyright = "The kvreplay maintainers. MIT licence"
release = version = version_of("kvreplay")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# The names that people import, as docs/api.md lists them; what they promise is in their docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # what each argument can be is said in words
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

# Each name of kvreplay's that a page or a docstring refers to must be there. Types are not looked
# up: those of other projects would need their indexes from the network, and a part of ours is
# private, where the signature says enough.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!kvreplay\.).*"),
    ("py:.*", r"kvreplay\.(_|.*\._).*"),
    ("py:class", r"kvreplay\.config\.registry\.StoreSettings"),  # nobody makes one
]

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"kvreplay {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_search_scorer = str(Path(__file__).parent / "scorer.js")
html_use_index = False
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


ABOVE = re.compile(r"\]\((?:\.\./)?(ARCHITECTURE|CHANGELOG|CONTRIBUTING|SECURITY)\.md")


def setup(app: Sphinx) -> None:
    """Let pages link to files above this folder, as they do where the repository is read."""
    app.connect("source-read", _of_the_site)


def _of_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    if page in ("architecture", "changelog", "contributing", "security"):
        above = Path(app.srcdir).parent / f"{page.upper()}.md"
        source[0] = above.read_text(encoding="utf-8").replace("](docs/", "](")
    source[0] = ABOVE.sub(lambda found: f"]({found[1].lower()}.md", source[0])
