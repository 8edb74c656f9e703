"""Pages from the templates beside this file: escaped, in one file, and without a network."""

import functools
import json
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from skullgen.core.errors import plain


def fill(name: str, values: dict[str, Any]) -> bytes:
    """The template `name` with `values`: text becomes one escaped line, `|tojson` makes data.

    `plotly` in it is the script of Plotly.
    """
    return _templates().get_template(name).render(values, plotly=Markup(get_plotlyjs())).encode()


@functools.cache
def _templates():
    loader = jinja2.PackageLoader("skullgen.report")
    templates = jinja2.Environment(
        loader=loader, autoescape=True, finalize=_line, undefined=jinja2.StrictUndefined
    )
    # NaN is null there.
    templates.policies["json.dumps_function"] = json.dumps
    templates.policies["json.dumps_kwargs"] = {"cls": PlotlyJSONEncoder, "separators": (",", ":")}
    return templates


def _line(value):
    return value if isinstance(value, Markup) else plain(str(value))
