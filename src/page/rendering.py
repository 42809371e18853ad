"""How templates are filled in: pages in HTML, the model card in Markdown."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from page.wording import kept_components

TEMPLATES = Path(__file__).parent / "templates"


def template_environment() -> jinja2.Environment:
    """Return what fills in the templates: HTML is escaped, and a name that is missing refused."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"cell": cell, "kept_components": kept_components}
    return found


def cell(value: Any) -> str:
    """Return a value as a cell of a table in Markdown, whatever it is made of."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def script_json(value: Any) -> Markup:
    """Return a value as JSON that cannot end the script element that it stands in."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))  # noqa: S704
