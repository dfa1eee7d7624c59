r"""Units, currencies and percentages behind (or before) a number.

A unit that one side alone states is ignored; two different ones differ. Units that people write
together (hours and minutes, feet and inches, dollars and cents) are converted; others are not,
because "200 cm" may be the whole point of a question about 2 m.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_TABLE = """
dollar $ us$ usd dollar dollars buck bucks | euro € eur euro euros
gbp £ gbp | pound pound pounds | lb lb lbs
yen ¥ jpy yen | rupee ₹ rs inr rupee rupees | yuan rmb cny yuan | cent ¢ cent cents
mm millimeter millimeters millimetre millimetres | cm centimeter centimeters centimetre centimetres
km kilometer kilometers kilometre kilometres kms | m meter meters metre metres
in inch inches | ft foot feet | yd yard yards | mi mile miles
mg milligram milligrams | kg kilogram kilograms kgs | g gram grams gm gms | oz ounce ounces
ml milliliter milliliters millilitre millilitres | l liter liters litre litres
ms millisecond milliseconds | s sec secs second seconds | min mins minute minutes
h hr hrs hour hours | day days | week weeks wk wks | month months | year years yr yrs
hz hertz | n newton newtons | j joule joules | w watt watts | kw kilowatt kilowatts
v volt volts | pa pascal pascals
a ampere amperes amp amps | mol mole moles | ohm ohms ω | kj kilojoule kilojoules
acre acres | rad radian radians | gal gallon gallons | ton tons tonne tonnes
"""
_UNITS = {
    name: row.split()[0]
    for line in _TABLE.strip().splitlines()
    for row in line.split("|")
    for name in row.split()
}
_LETTERS = {"m", "g", "s", "h", "l", "L", "A", "Ω", "J", "N", "W", "V"}
"""Units of one letter. They need a space before them: ``5m`` is a product."""
_SPEEDS = {
    "mph": ("mi", "h"),
    "kmh": ("km", "h"),
    "kph": ("km", "h"),
    "kmph": ("km", "h"),
    "fps": ("ft", "s"),
    "mps": ("m", "s"),
}
_TOGETHER: dict[str, tuple[str, Fraction]] = {
    **{
        name: ("s", Fraction(size))
        for name, size in (
            ("ms", "1/1000"),
            ("s", "1"),
            ("min", "60"),
            ("h", "3600"),
            ("day", "86400"),
            ("week", "604800"),
        )
    },
    **{name: ("month", Fraction(size)) for name, size in (("month", "1"), ("year", "12"))},
    **{name: ("in", Fraction(size)) for name, size in (("in", "1"), ("ft", "12"))},
    **{name: ("cent", Fraction(size)) for name, size in (("cent", "1"), ("dollar", "100"))},
}
_IGNORED = {
    "of",
    "the",
    "a",
    "an",
    "in",
    "is",
    "total",
    "altogether",
    "each",
    "more",
    "exactly",
    "approximately",
    "whole",
    "full",
    "us",
}
_NOT_UNITS = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
    "sqrt",
    "lim",
    "max",
    "mod",
    "gcd",
    "lcm",
    "arcsin",
    "arccos",
    "arctan",
    "pi",
    "or",
    "and",
    "inf",
    "where",
    "when",
    "for",
    "if",
    "with",
    "infinity",
    "times",
    "plus",
    "minus",
    "to",
    "than",
    "not",
    "tenth",
    "tenths",
    "hundredth",
    "hundredths",
    "thousandth",
    "thousandths",
    "half",
    "halves",
    "thirds",
    "fourths",
    "fifths",
    "sixths",
    "eighths",
    "tens",
    "squared",
    "cubed",
    "factorial",
}
_LARGE = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_WORD = re.compile(
    r"\s*(?:(?P<slash>/|\bper\b|\ba(?=\s)|\\cdot|\*)|(?P<degree>\^\\circ)|(?P<sign>[$€£¥₹¢])"
    r"|(?P<word>[A-Za-zµμΩ]+(?:['-][A-Za-z]+)*)\.?\s*(?:\^\s*(?:\{\s*(-?\d)\s*\}|(-?\d)))?)"
)


@dataclass(frozen=True)
class Unit:
    """What stands behind a number.

    Args:
        known: powers of units of the table, such as ``(("cm", 2),)``.
        words: other nouns in the singular, such as ``{"apple"}``.
        percent: whether the number is a percentage.
    """

    known: tuple[tuple[str, int], ...] = ()
    words: frozenset[str] = frozenset()
    percent: bool = False

    def __bool__(self) -> bool:
        return bool(self.known or self.words)

    def __str__(self) -> str:
        named = [name if power == 1 else f"{name}^{power}" for name, power in self.known]
        return " ".join([*named, *sorted(self.words)])

    def common(self) -> tuple[str, Fraction] | None:
        """Return the unit that this one is converted to, and its size there; ``None``: to none."""
        if len(self.known) == 1 and self.known[0][1] == 1:
            return _TOGETHER.get(self.known[0][0])
        return None


def agree(gold: Unit, found: Unit) -> bool:
    """Return whether two units are no contradiction.

    >>> agree(unit("dollars"), unit("euros")), agree(unit("apples"), unit("red apples"))
    (False, True)
    """
    if not gold or not found:
        return True
    if gold.known or found.known:
        one, other = gold.common(), found.common()
        if any(
            _renamed(gold, name) == _renamed(found, name) for name in ("", "gbp", "lb")
        ):  # pounds are money or a weight
            return True
        return one is not None and other is not None and one[0] == other[0]
    return gold.words <= found.words or found.words <= gold.words


_PERCENT = frozenset(
    ("%", "percent", "percentage", "pct", "per cent", "percents", "percentage points")
)


def unit(text: str, loose: bool = False) -> Unit | None:
    r"""Return the unit that ``text`` names, ``None`` where it is none.

    Args:
        text: cleaned, what stands behind a number.
        loose: whether other words are skipped, as in the rest of a sentence.

    >>> [str(unit(text)) for text in ("square centimeters", "cm ^2", "kilometers per hour")]
    ['cm^2', 'cm^2', 'h^-1 km']
    """
    if text.strip().lower() in _PERCENT:
        return Unit(percent=True)
    powers: dict[str, int] = {}
    words: set[str] = set()
    at, sign, next_power = 0, 1, 1
    while at < len(text.rstrip()):
        match = _WORD.match(text, at)
        if match is None:
            return None if not loose else _made(powers, words)
        at = match.end()
        if match.group("slash"):
            sign = -1 if match.group("slash").strip() in ("/", "per", "a") else sign
            continue
        if match.group("degree"):
            words.add("degree")
            continue
        word = match.group("sign") or match.group("word")
        power = int(match.group(5) or match.group(6) or 1)
        lower = word.lower()
        if lower in ("square", "sq", "cubic", "cu"):
            next_power = 2 if lower[0] == "s" else 3
            continue
        if lower in ("squared", "cubed") and (powers or words):
            if powers:
                powers[next(reversed(powers))] *= 2 if lower[0] == "s" else 3
            continue
        if lower in _SPEEDS:
            powers[_SPEEDS[lower][0]], powers[_SPEEDS[lower][1]] = 1, -1
            continue
        letter = word in _LETTERS and (word != "A" or at == len(text.rstrip()))  # A students
        name = _UNITS.get(lower) if len(word) > 1 or letter or match.group("sign") else None
        if name:
            powers[name] = powers.get(name, 0) + sign * power * next_power
            next_power = 1
            continue
        if _ends_before(lower, words, loose):
            return _made(powers, words) if loose else None
    return _made(powers, words)


def _ends_before(word: str, words: set[str], loose: bool) -> bool:
    """Add a word that is no unit to ``words``; return whether the unit ends before it."""
    if word in ("c", "f", "celsius", "fahrenheit") and "degree" in words:
        words.add(word[0])
    elif word in ("degree", "degrees", "deg"):
        words.add("degree")
    elif loose:
        return word in _NOT_UNITS
    elif word in _NOT_UNITS or (len(word) < 3 and word not in _IGNORED):
        return True
    elif word not in _IGNORED:
        words.add(_singular(word))
        return len(words) > 6
    return False


def large(text: str) -> tuple[int, str]:
    """Return the factor of a word such as million at the start of ``text``, and the rest."""
    word = re.match(r"\s*([A-Za-z]+)s?\b", text)
    factor = _LARGE.get(word.group(1).lower().rstrip("s")) if word else None
    return (factor, text[word.end() :]) if word and factor else (1, text)


def _renamed(one: Unit, name: str) -> list[tuple[str, int]]:
    return sorted(("pound" if known == name else known, power) for known, power in one.known)


def _made(powers: dict[str, int], words: set[str]) -> Unit:
    return Unit(
        tuple(sorted((name, power) for name, power in powers.items() if power)),
        frozenset() if powers else frozenset(words),
    )


def _singular(word: str) -> str:
    if word in ("people", "persons"):
        return "person"
    for end, new in (
        ("ies", "y"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("xes", "x"),
        ("sses", "ss"),
        ("s", ""),
    ):
        if word.endswith(end) and len(word) > len(end) + 1 and not word.endswith("ss"):
            return word[: -len(end)] + new
    return word
