r"""Remove what only changes how an answer looks: math delimiters, markdown, ``\text{…}``, spacing.

Every function here takes time in proportion to the text, which callers keep short.
"""

from __future__ import annotations

import re

_SIGNS = {
    "−": "-", "–": "-", "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "÷": r" \div ",
    "≤": r" \le ", "≥": r" \ge ", "≠": r" \ne ", "≈": r" \approx ", "π": r" \pi ", "∞": r" \infty ",
    "∪": r" \cup ", "∈": r" \in ", "ℝ": r"\mathbb{R}", "∅": r"\emptyset", "±": r" \pm ",
    "°": r"^\circ ", "½": " 1/2", "¼": " 1/4", "¾": " 3/4",
    "⅓": " 1/3", "⅔": " 2/3", "⅛": " 1/8", "⅜": " 3/8", "⅝": " 5/8", "⅞": " 7/8", "≡": r" \equiv ",
    "≅": r" \cong ", "≃": r" \simeq ",
    "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "",
    **{chr(0x2080 + digit): f"_{digit}" for digit in range(10)},
}  # fmt: skip
_NAMES = [
    (r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:leq?slant|leq)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geq?slant|geq)(?![A-Za-z])", r"\\ge"),
    (r"\\neq(?![A-Za-z])", r"\\ne"),
    (r"\\(?:approxeq|thickapprox)(?![A-Za-z])", r"\\approx"),
    (r"\\lt(?![A-Za-z])|&lt;", "<"),
    (r"\\gt(?![A-Za-z])|&gt;", ">"),
    (r"\\(?:lbrace|lbrack)(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\(?:left|right|[Bb]igg?[lr]?)(?![A-Za-z])\s*\.?", ""),
    (r"\\(?:displaystyle|textstyle|limits|nolimits|bf|rm|it)(?![A-Za-z])", " "),
    (r"\\(?:small|[Ll]arge|LARGE|[Hh]uge)(?![A-Za-z])", " "),
    (r"\\(?:text)?color\s*\{[A-Za-z]{1,20}\}", ""),
    (r"\\\\\s*\[\s*-?[\d.]{1,5}\s*[a-z]{2}\s*\]", r"\\\\ "),  # the height of a matrix's line
    (r"\{:\}", ":"),
    (r"(?<=\d)\s*\\Omega[\s$]*\Z", " Ω"),
    (r"(?<=\d)\s*\^\s*\{\s*(?:\\(?:text|textrm|mathrm)\s*\{)?\s*(st|nd|rd|th)\s*\}{1,2}", r"\1"),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset"),
    (r"\\to(?![A-Za-z])|\\[Rr]ightarrow(?![A-Za-z])", r" \\to "),
    (r"\\land(?![A-Za-z])|\\wedge(?![A-Za-z])", " and "),
    (r"\\lor(?![A-Za-z])|\\vee(?![A-Za-z])", " or "),
    (r"\\%", "%"),
]
_RULES = [(re.compile(pattern), new) for pattern, new in _NAMES]
_TEXT = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|tt|normal|up)?|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|mbox|hbox"
    r"|emph|underline|boxed|fbox|operatorname)\*?\s*\{([^{}\\]*)\}"
)
_ELLIPSIS = re.compile(r"\\(?:[cdl]?dots[bcmio]?|ldots)(?![A-Za-z])|\.{3,}|…")
_THOUSANDS = re.compile(
    r"(?<=\d)(?:,?(?<!\\)\\[,;:! ]\s*|\{,\}|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))"
)
_SPACES = re.compile(
    r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|&nbsp;|\\(?:thin|med|thick)space(?![A-Za-z])"
)
_WRAPPERS = [
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    (r"\boxed{", "}"),
    (r"\text{", "}"),
    ("{", "}"),
]
_END = re.compile(r"(?:(?<!\\)[.,;:。]|\\\\|\\[,;: !]|(?<!\\)\s|(?<!\\)\\(?=\Z))+\Z")
_FIRST = re.compile(
    r"\A[\s$]*(?:=(?![=>])|\\therefore(?![A-Za-z])|∴)|\\(?:mathbf|boldsymbol|bm)(?=\{)"
)
"""What says nothing before an answer."""
_RAISED = re.compile("([⁺⁻]?)([⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_ROOT = re.compile(r"√\s*(\d{1,20}|[A-Za-z])")
_OPEN = {"(": ")", "[": "]", "{": "}"}


def clean(text: str) -> str:
    r"""Return an answer without wrappers, markdown, text commands and spacing.

    >>> [clean(text) for text in (r"\text{13}", "**73**.", r"$\dfrac{1}{2}$", r"18\text{ cm}^2")]
    ['13', '73', '\\frac{1}{2}', '18 cm ^2']
    """
    text = _unwrapped(_ELLIPSIS.sub(r" \\ldots ", _THOUSANDS.sub("", text)))
    text = _RAISED.sub(_power, _ROOT.sub(r"\\sqrt{\1}", text))
    for sign, new in _SIGNS.items():
        text = text.replace(sign, new)
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    for _ in range(5):
        text, changed = _TEXT.subn(r" \1 ", text)
        if not changed:
            break
    text = _SPACES.sub(" ", _FIRST.sub("", text)).replace(r"\!", "").replace(r"\$", "$")
    return _unwrapped(" ".join(text.split()))


def _power(match: re.Match[str]) -> str:
    minus = "-" if match.group(1) == "⁻" else ""
    digits = "".join(str("⁰¹²³⁴⁵⁶⁷⁸⁹".index(digit)) for digit in match.group(2))
    return f"^{digits}" if len(minus + digits) == 1 else f"^{{{minus}{digits}}}"


def plain(text: str) -> str:
    """Return a line without markdown emphasis, headings, list marks, tags and ``<<2+3=5>>``."""
    text = re.sub(r"\A\s*(?:#+|>|[-*+]|[-=]+>|→|⇒|∴)\s+", "", text)
    return re.sub(
        r"\*\*|__|`|</?[a-z]{1,12}>|<<[^<>]{0,200}>>|(?<=[\w.)])\*(?=\Z)", "", text
    ).strip()


def _unwrapped(text: str) -> str:
    before = None
    while text != before:
        before = text = _END.sub("", text.strip())
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if (
                len(text) > len(opening) + len(closing) - 1
                and text.startswith(opening)
                and text.endswith(closing)
                and not text.endswith("\\" + closing)
                and _alone(inner, closing)
            ):
                text = inner.strip()
                break
    return text


def _alone(inner: str, closing: str) -> bool:
    """Whether a wrapper around ``inner`` is one pair and not two (``$1$ and $2$``)."""
    return bool(inner.strip()) and (balanced(inner) if closing == "}" else closing not in inner)


def balanced(text: str) -> bool:
    r"""Whether no brace of ``text`` closes one that it did not open; ``\{`` is no brace."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def split(text: str, pattern: re.Pattern[str]) -> list[str]:
    r"""Split at matches of ``pattern`` that stand in no bracket.

    >>> split("(1,2), 3", re.compile(","))
    ['(1,2)', '3']
    """
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"(?P<bracket>[(\[{{}})\]])|(?:{pattern.pattern})", text):
        if match.group("bracket"):
            depth += 1 if match.group() in _OPEN else -1
        elif depth <= 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]
