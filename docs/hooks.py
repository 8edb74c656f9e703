"""For the site: names in code become links to where they are defined, file and line."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "skullgen"


def place(name):
    """(file, line) of a public function or class, as `networks.losses.kl`; KeyError if none."""
    module, _, member = name.rpartition(".")
    file = PACKAGE / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        raise KeyError(name)
    for node in ast.parse(file.read_text()).body:
        if getattr(node, "name", "") == member:
            return f"skullgen/{file.relative_to(PACKAGE)}", node.lineno
    raise KeyError(name)


def on_page_markdown(markdown, page, **_):
    """On the page of methods such a name becomes a link to its source, by file and line."""
    if page.file.src_uri != "methods.md":
        return markdown

    def link(found):
        file, line = place(found[1])
        return f"[`{file}:{line}`](api.md#skullgen.{found[1]}) `{found[1].rpartition('.')[2]}`"

    return re.sub(r"`(?!config\.)((?:[a-z]+\.)[a-z0-9_]+\.[A-Za-z_]\w*)`(?!\()", link, markdown)
