"""Pages from the templates beside this file: escaped, in one file, and without a network."""

import json
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from skullgen.core.errors import plain

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("skullgen.report"),
    autoescape=True,
    finalize=lambda value: value if isinstance(value, Markup) else plain(str(value)),
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.policies["json.dumps_function"] = json.dumps  # NaN is null
TEMPLATES.policies["json.dumps_kwargs"] = {"cls": PlotlyJSONEncoder, "separators": (",", ":")}


def fill(name: str, values: dict[str, Any]) -> bytes:
    """The template `name` with `values`: text becomes one escaped line, `|tojson` makes data."""
    return TEMPLATES.get_template(name).render(values, plotly=Markup(get_plotlyjs())).encode()
