"""Colours for values of tokens: red to blue over white, or white to blue."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib
import numpy as np

from rlkd_lab.lab.live.tokens import ARRAYS, Values

PERCENTILE = 95


def on_axis(name: str, values: Values) -> Values:
    """Return values on the axis of the colours: logarithms of a ratio, else the values."""
    if ARRAYS[name].scale != "ratio":
        return values
    with np.errstate(divide="ignore"):
        return np.log(values)


def colour_limit(name: str, arrays: Iterable[Values]) -> float:
    """Return where the colours end: the 95th percentile of \\|value\\|, zeros left out.

    Of a ratio it is the percentile of \\|log value\\|.
    A percentile keeps one extreme token from making all others pale.
    """
    joined = np.concatenate([np.zeros(0), *(on_axis(name, values) for values in arrays)])
    sizes = np.abs(joined[np.isfinite(joined)])
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1.0
    return float(np.percentile(sizes, PERCENTILE))


def colours(name: str, values: Values, limit: float) -> list[tuple[str, str]]:
    """Return background and text colour of each value, as #rrggbb.

    The text is black or white, whichever has more contrast, which is at least 4.5 : 1.

    Args:
        name: of the array; it decides between red to blue and white to blue.
        values: (T,); a NaN is grey.
        limit: where the colours end, on the axis of :func:`on_axis`.
    """
    x = np.clip(on_axis(name, np.asarray(values, dtype=np.float64)) / limit, -1, 1)
    positive = ARRAYS[name].scale == "positive"
    place = np.nan_to_num(np.clip(x, 0, 1) if positive else (x + 1) / 2)
    painted = matplotlib.colormaps["Blues" if positive else "RdBu"](place)[:, :3]
    painted[np.isnan(x)] = 0.8
    if not positive:
        painted[x == 0] = 1.0
    # contrast and luminance as WCAG defines them
    linear = np.where(painted <= 0.04045, painted / 12.92, ((painted + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    text = np.where((luminance + 0.05) ** 2 > 1.05 * 0.05, "#000000", "#ffffff")
    backgrounds = ["#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in painted]
    return [(back, str(front)) for back, front in zip(backgrounds, text, strict=True)]
