"""The roofline of a benchmark's rows as SVG: ``python benchmarks/roofline.py out.json chart.svg``.

Across: how many flop a call does for each byte that has to come from memory or go there, inputs
and results once. Up: the GFLOP/s it reached. The roof is the lower of what the memory and the
vector units gave in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 420, 70, 60
ACROSS, UP = (0.1, 1000.0), (1.0, 1000.0)
FLOATS = 14  # of a Gaussian: mean, quaternion, scale, opacity, colour
PLANES = 8  # of a picture: colour, alpha, branch shares, depth
COEFFICIENTS = 48


def bytes_of(row: dict[str, Any]) -> float:
    """Bytes that a call has to read and write at least, forward and backward."""
    count, pixels = row["n"], row["size"] ** 2
    both = row["backward_ms"] > 0.0
    cloud, picture, basis = FLOATS * count, PLANES * pixels, 9 * COEFFICIENTS * count
    floats = {
        "rasterize": cloud + picture + (2 * cloud + 2 * picture if both else 0),
        "rasterize_blended": cloud + basis + picture,
        "blend_motion": basis + 20 * count + (2 * basis + 30 * count if both else 0),
        "evaluate_sh": 54 * count + (105 * count if both else 0),
        "ssim": 6 * pixels + (9 * pixels if both else 0),
    }
    return 4.0 * floats[row["op"]]


def place(intensity: float, gflops: float) -> tuple[float, float]:
    """Where a point stands in the chart, in pixels; both axes are logarithmic."""
    x = math.log(intensity / ACROSS[0]) / math.log(ACROSS[1] / ACROSS[0])
    y = math.log(gflops / UP[0]) / math.log(UP[1] / UP[0])
    return LEFT + x * (WIDTH - LEFT - 20), HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - 20)


def points(rows: list[dict[str, Any]], isa: str) -> list[tuple[str, float, float]]:
    """Label, flop a byte and GFLOP/s of every row of one instruction set."""
    found = []
    for row in rows:
        if row["isa"] != isa or not row["gflops"]:
            continue
        flop = row["gflops"] * row["total_ms"] * 1e6
        size = f"{row['size']}²" if row["size"] else ""
        count = f"{row['n'] // 1000}k" if row["n"] >= 1000 else str(row["n"] or "")
        label = " ".join(part for part in (row["op"], size, count) if part)
        found.append((label, flop / bytes_of(row), row["gflops"]))
    return found


def chart(out: dict[str, Any], isa: str) -> str:
    """The SVG of one instruction set's rows."""
    peak, memory = out["fma_gflops"][isa], out["gb_per_s"]
    corner = peak / memory
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    low, high = ACROSS
    for value in (0.1, 1, 10, 100, 1000):
        x, y = place(value, UP[0])
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{value:g}</text>')
    for value in (1, 10, 100, 1000):
        x, y = place(low, value)
        parts.append(f'<text x="{x - 8:.0f}" y="{y + 4:.0f}" text-anchor="end">{value}</text>')
        parts.append(f'<path d="M{x:.0f} {y:.0f}H{WIDTH - 20}" stroke="#ddd"/>')
    roof = [(max(low, UP[0] / memory), max(UP[0], low * memory)), (corner, peak), (high, peak)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in roof))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#444" stroke-width="2"/>')
    x, y = place(corner, peak)
    parts.append(
        f'<text x="{x:.0f}" y="{y - 8:.0f}">{peak:.0f} GFLOP/s, {memory:.1f} GB/s ({isa})</text>'
    )
    for label, intensity, gflops in points(out["results"], isa):
        x, y = place(intensity, gflops)
        end = ' text-anchor="end"' if x > WIDTH - 200 else ""
        shift = -8 if end else 8
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#b04"/>')
        parts.append(f'<text x="{x + shift:.1f}" y="{y + 4:.1f}"{end}>{label}</text>')
    middle = (LEFT + WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">flop a byte</text>')
    parts.append(f'<text x="{LEFT - 8}" y="14" text-anchor="end">GFLOP/s</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--isa", default="avx512")
    options = parser.parse_args()
    out = json.loads(options.json.read_text(encoding="utf-8"))
    options.svg.write_text(chart(out, options.isa), encoding="utf-8")
    for label, intensity, gflops in points(out["results"], options.isa):
        roof = min(out["fma_gflops"][options.isa], intensity * out["gb_per_s"])
        print(f"{label:32} {intensity:7.1f} flop/byte {gflops:6.1f} of {roof:6.1f} GFLOP/s")


if __name__ == "__main__":
    main()
