"""
Make small charts for pages, as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence

from pop3svc.web.markup import Markup, tag

__all__ = ["barChart"]

# The size of the picture, in its own units.  The style sheet scales the picture to its place.
_HEIGHT, _STEP, _BAR = 48, 5, 4


def barChart(counts: Sequence[int], name: str, css: str) -> Markup:
    """
    @param counts: a number for each minute, the oldest first.
    @param name: the name of the chart, for people who do not see the picture.
    @param css: the class of the chart.
    """
    most, total = max(counts, default=0), sum(counts)
    summary = f"{name}: {total} in {len(counts)} minutes, at most {most} in one minute"
    bars = []
    for place, count in enumerate(counts):
        if not count:
            continue
        # The least bar has a height that can still be seen.
        height = max(2, round(_HEIGHT * count / most))
        ago = len(counts) - 1 - place
        when = "in this minute" if not ago else f"{ago} min ago"
        bars.append(
            tag(
                "rect",
                tag("title", f"{count} {when}"),
                x=place * _STEP,
                y=_HEIGHT - height,
                width=_BAR,
                height=height,
            )
        )
    width = len(counts) * _STEP
    return tag(
        "svg",
        tag("title", summary),
        tag("line", x1=0, y1=_HEIGHT, x2=width, y2=_HEIGHT),
        *bars,
        class_=f"chart {css}",
        viewBox=f"0 0 {width} {_HEIGHT + 1}",
        preserveAspectRatio="none",
        role="img",
        aria_label=summary,
    )
