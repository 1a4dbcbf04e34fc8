"""Numbers as text, with their units, and back.

Three significant figures (more for large whole numbers) and a dash for what does not exist, so that
columns of numbers stay aligned while they change.
"""

from __future__ import annotations

import math
import re

from tem_live.dose import per_A2

NOTHING = "–"
DOSE_PX = "e⁻/px"
RATE_PX = "e⁻/px/s"
DOSE_A2 = "e⁻/Å²"
RATE_A2 = "e⁻/Å²/s"

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "min": 60.0}
# Thousands may be apart by a space of any width, never by a sign that may be a decimal one.
_WHOLE = r"[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+|[0-9]+"
_QUANTITY = re.compile(
    rf"\s*\+?((?:(?:{_WHOLE})(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][-+]?[0-9]+)?)(?![0-9.,])\s*(.*?)\s*"
)
_THOUSANDS_OR_DECIMALS = re.compile(r"[1-9][0-9]{0,2},[0-9]{3}")
_POWER = re.compile(r"×10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)\s*")
_PLAIN = str.maketrans({"⁻": "-", "²": "2", "Å": "A", "µ": "u", "μ": "u", "^": "", " ": ""})


def number(value: float | None, digits: int = 3) -> str:
    """Value with at least ``digits`` figures: ``4.98``, ``0.0123``, ``12 345``, ``1.20×10⁶``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    # The exponent after rounding: 9.996 is 10.0 and not 10.00.
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if power >= 6 or power <= -4:
        return f"{mantissa}×10{str(power).translate(_SUPERSCRIPT)}"
    text = f"{value:.{max(0, digits - 1 - power)}f}"
    return f"{int(text):,}".replace(",", "\u2009") if power >= 4 else text


def span(low: float, high: float) -> tuple[str, str]:
    """Two ends of a range, with the decimals that tell them apart: ``99.53`` and ``100.31``."""
    width = abs(high - low)
    if not (math.isfinite(low) and math.isfinite(high)) or width == 0:
        return number(low), number(high)
    decimals = 2 - math.floor(math.log10(width))
    if decimals > 5 or max(abs(low), abs(high)) >= 1e6:
        return number(low), number(high)
    decimals = max(0, decimals)
    # Rounded first, since a small negative end would be shown as "-0.00".
    first, last = (f"{round(end, decimals) + 0.0:.{decimals}f}" for end in (low, high))
    return first, last


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """Number and unit, or a dash alone."""
    text = number(value, digits)
    return text if text == NOTHING else f"{text} {unit}"


def count(value: int | None) -> str:
    """Whole number with thin spaces between the thousands."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\u2009")


def seconds(value_s: float | None) -> str:
    """Duration in the unit that reads best: ``50 µs``, ``200 ms``, ``1.5 s``."""
    if value_s is None or not math.isfinite(value_s):
        return NOTHING
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value_s) >= factor * (1 - 1e-9):
            return f"{value_s / factor:.4g} {unit}"
    return f"{value_s / 1e-6:.4g} µs" if value_s else "0 s"


def parse_seconds(text: str, bare_unit: str = "s") -> float:
    """Duration in seconds from ``0.2 s``, ``200ms``, ``50 us`` or a bare number in ``bare_unit``.

    Raises
    ------
    ValueError
        No number, a negative or an ambiguous one (``10,000``), or an unknown unit.
    """
    value, rest = _number_and_rest(text, f"'{text}' is no duration; write 0.2 s or 200 ms")
    unit = rest or bare_unit
    if unit not in _SECONDS:
        raise ValueError(f"'{text}' is no duration; write 0.2 s or 200 ms")
    return value * _SECONDS[unit]


def unit_of_seconds(text: str) -> str:
    """Unit that a duration's text ends with, ``s`` if none."""
    found = _QUANTITY.fullmatch(text)
    return found[2] if found and found[2] in _SECONDS else "s"


def parse_number(text: str, unit: str) -> float:
    """Number with nothing behind it but, perhaps, its unit: ``12 000``, ``1.5e4 e-/A^2``.

    Raises
    ------
    ValueError
        No number, a negative or an ambiguous one (``10,000``), or another unit.
    """
    value, rest = _number_and_rest(text, f"'{text}' is no number; write 10000, 10 000 or 0.5")
    power = _POWER.match(rest)
    if power:
        back = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
        value *= 10.0 ** int(power[1].translate(back))
        rest = rest[power.end() :]
    if rest and _plain(rest) != _plain(unit):
        raise ValueError(f"'{text}' is not in {unit}, as this field is")
    return value


def _number_and_rest(text: str, otherwise: str) -> tuple[float, str]:
    found = _QUANTITY.fullmatch(text)
    if found is None or _THOUSANDS_OR_DECIMALS.fullmatch(found[1]):
        raise ValueError(otherwise)
    return float(re.sub(r"\s", "", found[1]).replace(",", ".")), found[2]


def _plain(unit: str) -> str:
    """A unit as it is typed: ``e/A2/s`` for e⁻/Å²/s."""
    return unit.translate(_PLAIN).replace("e-", "e")


def clock(elapsed_s: float) -> str:
    """Elapsed time as ``mm:ss``, with hours in front when there are any."""
    minutes, rest = divmod(int(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def length(value_nm: float) -> str:
    """Length of a scale bar: ``20 nm``, ``0.5 nm``, ``2 µm``."""
    if value_nm >= 1000 * (1 - 1e-9):
        return f"{value_nm / 1000:g} µm"
    return f"{value_nm:g} nm"


def pixel_size(value_nm: float | None) -> str:
    """Pixel size, or that there is none."""
    return "no calibration" if value_nm is None else f"{number(value_nm)} nm/px"


def dose_per_area(dose_e_per_px: float | None, pixel_size_nm: float | None) -> float | None:
    """Dose (or rate) per square angstrom, where the pixel size is known."""
    if dose_e_per_px is None or pixel_size_nm is None:
        return None
    return per_A2(dose_e_per_px, pixel_size_nm)


def next_step(value: float, steps: int) -> float:
    """The value ``steps`` further on the ladder 1, 2, 5, 10, 20 … (and down for negative steps)."""
    if value <= 0:
        return 1.0 if steps > 0 else 0.0
    ladder = (1.0, 2.0, 5.0)
    power = math.floor(math.log10(value) + 1e-9)
    rungs = [base * 10.0**exponent for exponent in range(power - 1, power + 2) for base in ladder]
    if steps > 0:
        up = next(i for i, rung in enumerate(rungs) if rung > value * (1 + 1e-6))
        position = up + steps - 1
    else:
        down = next(i for i in reversed(range(len(rungs))) if rungs[i] < value * (1 - 1e-6))
        position = down + steps + 1
    decade, index = divmod(position, 3)
    result: float = ladder[index] * 10.0 ** (power - 1 + decade)
    # 10.0**-2 times 5 is 0.05 only after rounding.
    return float(f"{result:.6g}")
