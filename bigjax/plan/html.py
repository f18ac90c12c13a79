"""A plan as one HTML page without scripts or other files, with pictures in SVG."""

from collections.abc import Iterable, Sequence
import html
from typing import NamedTuple

from bigjax.plan import schedule
from bigjax.plan.chips import GIB
from bigjax.plan.compile import Plan

# Of Okabe and Ito, who chose them so that people who see fewer colours can tell them apart.
COLOURS = {
    **dict(zip(schedule.KINDS, ("#0072b2", "#56b4e9", "#e69f00", "#cc79a7", "#d55e00"))),
    **{"parameters": "#0072b2", "optimizer": "#56b4e9", "frozen": "#cc79a7", "other": "#e69f00"},
}
WIDTH = 860
LABEL = 46  # characters beside a bar
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 900px; margin: 2em auto;
  padding: 0 1em; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1em }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 13px }
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif }
svg text { fill: #222 }
.trust { color: #555; border-top: 1px solid #ccc; padding-top: 1em }
"""


class Section(NamedTuple):
    """One plan of a page. text: what the command prints about it."""

    title: str
    plan: Plan
    text: str


def page(title: str, sections: Sequence[Section], trust: str) -> str:
    """The text of the page. trust: how far the figures can be trusted."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>",
            *(part for section in sections for part in _section(section)),
            f'<p class="trust">{html.escape(trust)}</p>\n</body>\n</html>\n',
        ]
    )


def _section(section: Section) -> Iterable[str]:
    plan = section.plan
    yield f"<h2>{html.escape(section.title)}</h2>\n<pre>{html.escape(section.text)}</pre>"
    yield _figure("Memory of a device", _memory(plan))
    if not plan.schedule:
        return
    seconds = schedule.by_kind(plan.schedule)
    total = sum(seconds.values())
    parts = [(kind, s, f"{kind} {s / total:.1%}") for kind, s in seconds.items() if s]
    yield _figure(
        f"Time by kind of operation: {schedule.duration(total)} without overlap",
        _stack(parts, total),
    )
    largest = plan.schedule[: schedule.LARGEST]
    share = sum(e.seconds for e in largest) / total
    yield _figure(f"The {len(largest)} largest: {share:.0%} of the time", _bars(largest, total))


def _memory(plan: Plan) -> str:
    sizes = {
        "parameters": plan.parameter_bytes,
        "optimizer": plan.optimizer_bytes - plan.host_bytes,
        "frozen": plan.frozen_bytes,
        "other": max((plan.peak_bytes or 0.0) - plan.state_bytes, 0.0),
    }
    parts = [(name, n, f"{name} {n / GIB:.2f} GiB") for name, n in sizes.items() if n > 0]
    whole = max(plan.limit_bytes, sum(sizes.values()))
    limit = plan.limit_bytes / whole * WIDTH
    mark = (
        f'<path d="M{limit:.1f} 0V44" stroke="#222" stroke-width="2"/>'
        f'<text x="{limit - 4:.1f}" y="58" text-anchor="end">limit {plan.limit_bytes / GIB:.2f} GiB'
        "</text>"
    )
    return _stack(parts, whole, mark)


def _stack(parts: list[tuple[str, float, str]], whole: float, mark: str = "") -> str:
    """A bar of parts (name, size, label) of a whole, with a legend."""
    shapes, x = [], 0.0
    for name, size, label in parts:
        width = size / whole * WIDTH
        shapes.append(
            f'<rect x="{x:.1f}" y="4" width="{width:.1f}" height="36" fill="{COLOURS[name]}">'
            f"<title>{html.escape(label)}</title></rect>"
        )
        x += width
    top = 70 if mark else 54
    for i, (name, _, label) in enumerate(parts):
        left = i % 3 * (WIDTH / 3)
        y = top + i // 3 * 22
        shapes.append(
            f'<rect x="{left:.1f}" y="{y}" width="12" height="12" fill="{COLOURS[name]}"/>'
            f'<text x="{left + 18:.1f}" y="{y + 11}">{html.escape(label)}</text>'
        )
    outline = f'<rect x="0" y="4" width="{WIDTH}" height="36" fill="#eee"/>'
    return _svg(top + (len(parts) + 2) // 3 * 22, outline + "".join(shapes) + mark)


def _bars(entries: Sequence[schedule.Entry], total: float) -> str:
    """A bar for each entry, with its time, share and bound."""
    labels, longest = 330, entries[0].seconds
    room = WIDTH - labels - 190  # for the text behind the longest bar
    rows = []
    for i, e in enumerate(entries):
        y, width = 26 * i, max(e.seconds / longest * room, 1.0)
        behind = f"{schedule.duration(e.seconds)}, {e.seconds / total:.1%}, {e.bound}"
        rows.append(
            f'<text x="{labels - 8}" y="{y + 16}" text-anchor="end">'
            f"{html.escape(_shortened(f'{e.layer}, {e.part}'))}</text>"
            f'<rect x="{labels}" y="{y + 3}" width="{width:.1f}" height="18" '
            f'fill="{COLOURS[e.kind]}"><title>{html.escape(e.kind)}</title></rect>'
            f'<text x="{labels + width + 6:.1f}" y="{y + 16}">{html.escape(behind)}</text>'
        )
    return _svg(26 * len(entries), "".join(rows))


def _shortened(label: str) -> str:
    """The end of a label: what it names."""
    return label if len(label) <= LABEL else f"...{label[3 - LABEL :]}"


def _svg(height: float, content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{content}</svg>'


def _figure(title: str, picture: str) -> str:
    return f"<h3>{html.escape(title)}</h3>\n{picture}"
