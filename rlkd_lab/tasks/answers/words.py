r"""Choice letters, yes and no, words and names."""

from __future__ import annotations

import re

_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(\s*([A-Ja-j])\s*\)|([A-J])(?=\s*[.):]|\s*\Z)|([a-j])(?=\s*\)))\s*[.):]?\s*(.*)\Z",
    re.I | re.DOTALL,
)
_SAID = re.compile(r"\b(?:option|choice|answer(?:\s+is)?)\s*:?\s*\(?([A-J])\)?(?![A-Za-z'])")
_ALONE = re.compile(
    r"\(([A-J])\)|(?<![A-Za-z'\\])([B-HJ]|A(?!\s+(?!(?:or|and|is)\b)[a-z]))(?![A-Za-z'])"
)
_IN_FORMULA = re.compile(
    r"\d[A-J](?![A-Za-z])|(?<![A-Za-z\\])[A-J](?:\s*(?:[+/^<>_]|\*(?!\*))|\(|\d|-\d|\s*-\s*\d+\s*\Z)"
    r"|[\d)]\s*[-+*/]\s*[A-J](?![A-Za-z])|[+/^]\s*[A-J](?![A-Za-z])|\\circ\s*[CF](?![A-Za-z])"
)
"""A letter that is a variable: ``C(5,2)``, ``2B``, ``B + 1``, ``3 - B``."""
_CHOICE = r"(?:option\s+|choice\s+)?\(?[A-J]\)?(?![A-Za-z'])"
_NOT = re.compile(
    r"(?:\b(?:not|cannot|neither|than|over|(?:anything|all) but)|n't)\s+(?:be\s+|either\s+)?"
    rf"{_CHOICE}(?:\s*(?:,|\bn?or\b|\band\b)\s*{_CHOICE})*"
    rf"|(?<![A-Za-z]){_CHOICE}\s+(?:(?:is|was|does|can)(?:n't|not|\s+not(?! only)|\s+never)"
    r"|(?:is|was)\s+(?:the\s+)?(?:wrong|incorrect|false))\b",
    re.I,
)
"""Letters that are ruled out."""
_JOINED = re.compile(r"(?:,|/|&|\bor\b|\band\b)(?:\s*\(?[A-J]\)?)?\W*\Z", re.I)
_YES = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_GOES_ON = {
    "it",
    "they",
    "he",
    "she",
    "we",
    "you",
    "i",
    "the",
    "this",
    "that",
    "there",
    "because",
    "since",
    "as",
    "not",
}
_OTHER = {"yes": "no", "no": "yes"}
_DENIED = re.compile(r"(?:\b(?:not|never|cannot)|n't)(?:\s+be)?\s+\w+\W*\Z", re.I)
_WORDS = re.compile(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")
_FORMULA = re.compile(r"(?:\(?[A-Z][a-z]?\)?\d*){2,12}(?:\^\{?\d*[+-]\}?)?")
_SHORT = {
    "no",
    "on",
    "up",
    "in",
    "is",
    "it",
    "he",
    "we",
    "go",
    "to",
    "of",
    "or",
    "an",
    "at",
    "by",
    "do",
    "if",
    "me",
    "my",
    "us",
    "so",
    "as",
    "am",
    "be",
    "ox",
    "hi",
    "oh",
    "ok",
    "dry",
    "sky",
    "fly",
    "try",
    "why",
    "cry",
    "shy",
    "gym",
}
"""Words that look like products of variables."""
_ARTICLES = {"a", "an", "the"}
MOST_WORDS = 6
"""A longer text is a sentence, and sentences are not judged."""


def letter(text: str) -> tuple[str, str] | None:
    r"""Read a choice as its letter and the text behind it.

    >>> [letter(text) for text in ("B", "(B) 12", "Option b", "b) 12", "B 12", "b")]
    [('B', ''), ('B', '12'), ('B', ''), ('B', '12'), None, None]
    """
    match = _LETTER.match(text)
    if match is None:
        return None
    mark = match.group(1) or match.group(2) or match.group(3)
    bare = match.group(2) is not None and match.start(2) == 0
    if bare and mark.islower() and not re.match(r"[a-j]\s*\)", text):
        return None  # a variable
    if _JOINED.match(match.group(4)):
        return None  # (A) or (B)
    return mark.upper(), match.group(4).strip()


def letter_said(text: str) -> str | None:
    """Return the letter behind "answer", "option" or "choice", or the only one in a sentence."""
    text = _NOT.sub("", text)
    if _IN_FORMULA.search(text):
        return None
    said = _SAID.findall(text)
    if said:
        return str(said[-1])
    alone = {one or other for one, other in _ALONE.findall(text)}
    if re.search(r"(?<![A-Za-z])[A-J]\s*=", text):
        return None
    return alone.pop() if len(alone) == 1 else None


def yes(text: str) -> str | None:
    """Read yes, no, true or false, and nothing else."""
    return _YES.get(text.strip(" .!,").lower())


def yes_said(text: str) -> str | None:
    """Return the yes or no that a sentence begins or ends with.

    >>> texts = ("No, 7 is prime", "It is yes", "It is not true", "No solution")
    >>> [yes_said(text) for text in texts]
    ['no', 'yes', 'no', None]
    """
    words = re.findall(r"[A-Za-z]+|[^\sA-Za-z]", text)
    while words and not words[-1].isalpha():
        words.pop()
    if not words:
        return None
    first, last = _YES.get(words[0].lower()), _YES.get(words[-1].lower())
    if (
        first
        and len(words) > 1
        and words[1].isalpha()
        and words[0].lower() != "yes"
        and words[1].lower() not in _GOES_ON
    ):
        first = None  # "No solution" is no "no"
    if last and _DENIED.search(text):
        last = _OTHER[last]
    return first or last if first is None or last is None or first == last else None


def word(text: str) -> str | None:
    r"""Read a word, a name, a short phrase or a chemical formula.

    Letters that may be a product of variables (``xy``, ``ab``) are none.

    >>> [word(text) for text in ("The Blue whale", "no", "xy", "H_2O", "x")]
    ['blue whale', 'no', None, 'H2O', None]
    """
    tight = re.sub(r"[\s_{}]", "", text)
    if any(map(str.isdigit, tight)) and _FORMULA.fullmatch(tight):
        return tight
    if not _WORDS.fullmatch(text):
        return None
    if min(text) > "\u2e80":  # Chinese, Japanese, Korean
        return text
    words = re.split(r"[\s-]+", text.lower())
    if len(words) > MOST_WORDS:
        return None
    if (
        len(words) == 1
        and words[0] not in _SHORT
        and not (text.isupper() and len(text) > 1)
        and (len(text) < 3 or (len(text) < 5 and not re.search("[aeiou]|[^a-z]", text)))
    ):
        return None
    kept = [one for one in words if one not in _ARTICLES] or words
    if kept.count("and") == 1 and 0 < kept.index("and") < len(kept) - 1:
        at = kept.index("and")  # Bob and Alice
        return " and ".join(sorted((" ".join(kept[:at]), " ".join(kept[at + 1 :]))))
    text = " ".join(kept)
    return {"dne": "does not exist", "no solutions": "no solution"}.get(text, text)
