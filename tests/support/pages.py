"""The examples of the pages about HTTP, as modules that can be imported."""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

__all__ = ["examples", "imported"]

DOCS = Path(__file__).parent.parent.parent / "docs"

_number = itertools.count(1)


def examples(page: str) -> list[str]:
    """Return the Python examples of a page, in their order, even those inside lists."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in found]


def imported(folder: Path, *parts: str) -> ModuleType:
    """Write a module into a folder, and import it, by a name that no other has."""
    file = folder / f"example_{next(_number)}.py"
    file.write_text("\n\n".join(parts), encoding="utf-8")
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = module_from_spec(spec)  # annotations are looked up there
    spec.loader.exec_module(module)
    return module
