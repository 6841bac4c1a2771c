"""Lines over steps, as an SVG of a few kilobytes."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50
COLORS = ["#1f5fa8", "#d1571e", "#2f8f4e", "#7a4fa3"]


def ticks(low, high, count=6):
    """Round numbers between `low` and `high`, about `count` of them."""
    raw = (high - low) / count or 1
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first, last = math.ceil(low / step), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def smooth(points, window):
    """Means over the last `window` points."""
    values = [value for _, value in points]
    means = [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]
    return [(step, mean) for (step, _), mean in zip(points, means)]


class Frame:
    """Where steps and values lie on the page; both axes begin at zero."""

    def __init__(self, points):
        self.right = max(step for step, _ in points)
        self.top = max(value for _, value in points)

    def x(self, step):
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / self.right, 1)

    def y(self, value):
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top, 1)

    def polyline(self, points, style):
        path = " ".join(f"{self.x(step)},{self.y(value)}" for step, value in points)
        return f'<polyline points="{path}" fill="none" {style}/>'

    def axes(self):
        for value in ticks(0, self.top):
            yield f'<path d="M{LEFT} {self.y(value)}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            yield f'<text x="{LEFT - 8}" y="{self.y(value) + 4}" text-anchor="end">{value:g}</text>'
        for step in ticks(0, self.right, 8):
            yield f'<text x="{self.x(step)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:g}</text>'
        yield f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">step</text>'


def svg(title, series, window=5):
    """`series` maps a name to (step, value) points: thin as they are, thick as running means."""
    frame = Frame([point for points in series.values() for point in points])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        *frame.axes(),
    ]
    for i, ((name, points), color) in enumerate(zip(series.items(), COLORS)):
        label = f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 16 * (i + 1)}" text-anchor="end" fill="{color}">{escape(name)}</text>'
        parts.append(frame.polyline(points, f'stroke="{color}" stroke-opacity=".3"'))
        parts.append(frame.polyline(smooth(points, window), f'stroke="{color}" stroke-width="1.6"'))
        parts.append(label)
    return "\n".join([*parts, "</svg>", ""])
