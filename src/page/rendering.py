"""The Jinja environment that fills in the templates: pages in HTML, the model card in Markdown."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from page.wording import describe_postprocessing

TEMPLATES = Path(__file__).parent / "templates"


def template_environment() -> jinja2.Environment:
    """Return the Jinja environment: it escapes HTML and raises an error for an undefined name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "describe_postprocessing": describe_postprocessing}
    return environment


def cell(value: Any) -> str:
    """Return a value as a cell of a Markdown table: on one line, with `|` and `<` escaped."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def script_json(value: Any) -> Markup:
    """Return a value as JSON that is safe inside a script element: `<` is escaped."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))  # noqa: S704
