"""The report's frame: one self-contained HTML page, typography for light and dark screens."""

from __future__ import annotations

import html
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gsavatar import __version__
from gsavatar.report_words import Finding, Tile

PACKAGES = ("torch", "numpy", "mediapipe", "opencv-python-headless", "onnxruntime", "av", "gsplat")
STYLE = """
:root { color-scheme: light dark; --ink: #16181d; --soft: #5b6270; --faint: #e4e6eb;
  --paper: #fbfbfa; --card: #ffffff; --accent: #2458d3; --good: #14713d; --weak: #a4490c;
  --good-bg: #e8f4ec; --weak-bg: #fcefe3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9eaee; --soft: #a0a6b4; --faint: #2d313a;
  --paper: #14161a; --card: #1c1f25; --accent: #84a9ff; --good: #7cd29b; --weak: #f2b27c;
  --good-bg: #18291f; --weak-bg: #30241a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2.1rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 6px; }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 52px 0 6px; }
p { margin: 6px 0 14px; max-width: 72ch; } .lead { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px;
  margin: 26px 0 18px; }
.tile { background: var(--card); border: 1px solid var(--faint); border-radius: 12px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 1.75rem; font-weight: 620; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile b small { font-size: 0.9rem; font-weight: 400; color: var(--soft); letter-spacing: 0;
  margin-left: 5px; }
.tile span { font-size: 0.9rem; font-weight: 550; }
.tile em { font-style: normal; font-size: 0.82rem; color: var(--soft); }
.findings { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 12px; }
.findings section { border-radius: 12px; padding: 14px 18px; }
.findings h3 { margin: 0 0 4px; font-size: 1rem; }
.findings ul { margin: 0; padding-left: 18px; } .findings li { margin: 5px 0; }
.good { background: var(--good-bg); } .good h3 { color: var(--good); }
.weak { background: var(--weak-bg); } .weak h3 { color: var(--weak); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 12px; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 550; color: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 450; } td small { color: var(--soft); display: block;
  font-size: 0.78rem; font-weight: 400; white-space: nowrap; }
td.best { font-weight: 680; }
.facts th { width: 32%; } .facts td { text-align: left; overflow-wrap: anywhere; }
figure { margin: 0 0 22px; } figcaption { color: var(--soft); font-size: 0.86rem; margin-top: 5px; }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; }
.heads { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; font-size: 0.86rem;
  font-weight: 550; margin: 14px 0 6px; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
.mouths { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 16px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.chart { background: var(--card); border: 1px solid var(--faint); border-radius: 12px;
  padding: 10px 12px 6px; margin: 10px 0 18px; }
.legend { font-size: 0.86rem; display: flex; gap: 18px; padding-left: 6px; }
.legend i { display: inline-block; width: 20px; height: 0; border-top: 3px solid; margin-right: 6px;
  vertical-align: middle; }
.legend i.real { border-color: var(--soft); } .legend i.ours { border-color: var(--accent); }
svg { width: 100%; height: auto; display: block; }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .real { stroke: var(--soft); } svg .ours { stroke: var(--accent); }
.grid { stroke: var(--faint); } .level { stroke: var(--weak); stroke-dasharray: 5 5; }
svg .cell { fill: var(--accent); }
.tick { fill: var(--soft); font-size: 12px; }
.named { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.axis { fill: var(--soft); font-size: 12.5px; }
.bar { display: grid; grid-template-columns: 250px 1fr 80px; gap: 12px; align-items: center;
  margin: 5px 0; font-size: 0.92rem; }
.narrow .bar { grid-template-columns: 165px 1fr 110px; }
.bar b { background: var(--faint); border-radius: 4px; height: 12px; }
.bar i { display: block; height: 12px; border-radius: 4px; background: var(--accent); }
.bar em { font-style: normal; color: var(--soft); font-variant-numeric: tabular-nums; }
table.words td { text-align: left; vertical-align: top; min-width: 90px; }
table.words thead th { text-align: left; }
table.words th { vertical-align: top; min-width: 170px; } table.words td.value { font-weight: 620;
  white-space: nowrap; }
video { width: 100%; border-radius: 12px; background: black; display: block; }
.keys { display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 0.86rem; margin: 8px 0 14px; }
.keys i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(460px, 1fr)); gap: 14px; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 550; }
ul.notes { padding-left: 20px; font-size: 0.92rem; } ul.notes li { margin: 4px 0;
  overflow-wrap: anywhere; }
@media (max-width: 620px) { main { padding: 28px 14px 60px; }
  .bar, .narrow .bar { grid-template-columns: 120px 1fr 64px; }
  .mouths { grid-template-columns: 1fr; } }
@media print { body { background: white; } figure, .tile, .chart { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def heading(name: str, lead: str) -> str:
    """What the page is about and where its numbers come from."""
    return f'<h1>{html.escape(name)}</h1><p class="lead">{html.escape(lead)}</p>'


def tile_row(tiles: Sequence[Tile]) -> str:
    """The headline numbers side by side."""
    cards = "".join(
        f'<div class="tile"><span>{html.escape(t.label)}</span><b>{html.escape(t.value)}'
        f"<small>{html.escape(t.unit)}</small></b><em>{html.escape(t.beside)}</em></div>"
        for t in tiles
    )
    return f'<div class="tiles">{cards}</div>'


def two_sides(found: Sequence[Finding]) -> str:
    """What is good beside what is weak; "" if there is neither."""
    parts = []
    for good, title in ((True, "Good"), (False, "Weak")):
        items = "".join(
            f"<li><strong>{html.escape(f.title)}.</strong> {html.escape(f.text)}</li>"
            for f in found if f.good == good
        )  # fmt: skip
        if items:
            style = "good" if good else "weak"
            parts.append(f'<section class="{style}"><h3>{title}</h3><ul>{items}</ul></section>')
    return f'<div class="findings">{"".join(parts)}</div>' if parts else ""


def versions() -> list[tuple[str, str]]:
    """The program, the system and the packages that the numbers may hang on."""
    # Not platform.platform(): it starts a process, whose memory the fit would count as its own.
    system = f"{platform.system()} {platform.release()}"
    rows = [("gsavatar", __version__), ("Python", platform.python_version()), ("System", system)]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return rows


def run_settings(run_dir: Path) -> str:
    """The settings of a run, folded; "" if it has none."""
    config = run_dir / "config.toml"
    if not config.exists():
        return ""
    lines = config.read_text(errors="replace").splitlines()
    # A report is passed on; where the user keeps a licensed file is nobody's business.
    text = html.escape("\n".join(line for line in lines if not line.startswith("model_file")))
    return f"<details><summary>Settings of the run</summary><pre>{text}</pre></details>"


def section(title: str, lead: str, *content: str) -> str:
    """A headed part of the page; "" if it has no content."""
    inner = "".join(content)
    if not inner:
        return ""
    words = f'<p class="lead">{html.escape(lead)}</p>' if lead else ""
    return f"<h2>{html.escape(title)}</h2>{words}{inner}"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A two-column table of plain text."""
    lines = "".join(
        f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows if v
    )
    return f'<table class="facts"><tbody>{lines}</tbody></table>' if lines else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text, the second column in bold; "" if it has no rows."""
    if not rows:
        return ""
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    lines = []
    for name, value, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        lines.append(
            f"<tr><th>{html.escape(name)}</th>"
            f'<td class="value">{html.escape(value)}</td>{cells}</tr>'
        )
    body = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="words">{body}</table></div>'


def bullets(items: Sequence[str]) -> str:
    """A list of plain sentences; "" if there are none."""
    lines = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f'<ul class="notes">{lines}</ul>' if lines else ""
