"""HTML elements of `page`: each a string, "" where there is nothing to show.

Figures are kept as JSON beside the element that page.html's script fills with Plotly.
"""

import html
import itertools
import json

from plotly.utils import PlotlyJSONEncoder

from skullgen.core.errors import plain


def text(value):
    """Any value as one line that is safe in HTML, between tags and in quotes."""
    return html.escape(plain(str(value)))


def section(title, body):
    """A section, under a heading that the table of contents leads to."""
    return f'<section id="{anchor(title)}"><h2>{text(title)}</h2>{body}</section>'


def listing(lines):
    """Lines as a list; "" without any."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(head, rows, caption=""):
    """A table, which scrolls in its own box; a cell is a value or (value, smaller text).

    "" without rows.
    """

    def line(row, tags):
        cells = [value if isinstance(value, tuple) else (value, "") for value in row]
        cells = [text(v) + (f"<small>{text(note)}</small>" if note else "") for v, note in cells]
        cells = [f"<{tag}>{cell}</{tag}>" for tag, cell in zip(tags, cells, strict=False)]
        return f"<tr>{''.join(cells)}</tr>"

    if not rows:
        return ""
    body = "".join(line(row, itertools.chain(["th"], itertools.repeat("td"))) for row in rows)
    body = f"<thead>{line(head, itertools.repeat('th'))}</thead><tbody>{body}</tbody>"
    box = f'<div class="table" tabindex="0" role="group" aria-label="{text(caption or "Table")}">'
    return f"{box}<table><caption>{text(caption)}</caption>{body}</table></div>"


def plot(kind, figures, label, high):
    """An element `high` rem high; page.html's function `kind` draws one of `figures` (dicts) in it.

    `label` says what is seen to those who cannot see it.
    """
    # No entity is read inside <script>: "<" is written as JSON may write it.
    held = [json.dumps(f, cls=PlotlyJSONEncoder).replace("<", "\\u003c") for f in figures]
    held = "".join(f'<script type="application/json">{one}</script>' for one in held)
    about = f'data-kind="{kind}" role="img" aria-label="{text(label)}"'
    return f'<div><div class="plot" {about} style="--high: {high:.1f}rem"></div>{held}</div>'


def anchor(title):
    """The name that links to a section have."""
    return title.lower().replace(" ", "-")
