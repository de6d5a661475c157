"""Sphinx's configuration of the site; `alignkit site DIR` gathers the pages and calls it.

Nothing is fetched when a page is viewed: formulas become MathML, which browsers set
themselves, and the theme brings its own fonts.
"""

import re
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

from alignkit.course.tour import NOTEBOOKS
from alignkit.versions import __version__

_project = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text("utf-8"))["project"]

project = html_title = "alignkit"
author = "The alignkit authors"
release = __version__
root_doc = "index"
exclude_patterns = ["site"]
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"  # the kept outputs are shown: CI has executed them
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_preserve_defaults = True  # FOLDER, not where it was on the machine that built it
autodoc_default_options = {"members": True, "imported-members": True}
html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_theme_options = {
    "repository_url": _project["urls"]["Repository"],
    "repository_branch": "main",
    "path_to_docs": "notebooks",
    "use_repository_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 1,
    "navbar_start": [],  # the name and the search stand in the sidebar
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}


def _mathml(display: str):
    def visit(translator, node: nodes.Node) -> None:
        made = convert(node.astext(), display=display)
        translator.body.append(f'<div class="formula">{made}</div>'
                               if display == "block" else made)
        raise nodes.SkipNode

    return visit, None


def _docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with equations, not reStructuredText: what is indented
    stays as it is, and no character outside `code` means anything."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    lines.clear()
    for block in blocks:
        rows = block.splitlines()
        if any(row.startswith(" ") for row in rows):
            lines += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            lines += [*(_escaped(row) for row in rows), ""]


def _escaped(row: str) -> str:
    parts = row.split("`")
    parts[::2] = [re.sub(r"([\\*|_:<])", r"\\\1", text) for text in parts[::2]]
    return "``".join(parts) if len(parts) % 2 else row.replace("`", "\\`")


def setup(app) -> None:
    app.add_html_math_renderer("mathml", _mathml("inline"), _mathml("block"))
    app.connect("autodoc-process-docstring", _docstring)
