"""Numbers as people read them, one form each; the templates know them as filters."""

from service.core.words import counted

NONE = "–"
UNITS = ("kB", "MB", "GB", "TB")


def percent(value_bp: int) -> str:
    """Return basis points as percent with one decimal."""
    return f"{value_bp / 100:.1f} %"


def points(value_bp: int) -> str:
    """Return a change in basis points as percentage points, with its sign, two decimals."""
    return f"{value_bp / 100:+.2f}".replace("-", "−")


def share(part: int, whole: int) -> str:
    """Return a part of a whole as percent; never 100 or 0 % for almost all or nearly none."""
    if whole == 0:
        return NONE
    tenths = round(1000 * part / whole)
    if 0 < part < whole:
        tenths = max(1, min(999, tenths))
    return f"{tenths // 10} %" if tenths % 10 == 0 else f"{tenths / 10:.1f} %"


def size(count_bytes: int) -> str:
    """Return bytes in decimal units, two digits at least."""
    value, unit = float(count_bytes), "B"
    for larger in UNITS:
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1
    return f"{value:.{digits}f} {unit}"


def grouped(number: int) -> str:
    """Return a count with thin groups of three."""
    return f"{number:,}".replace(",", "\u202f")


def devices(number: int, does: str = "", do: str = "") -> str:
    """Return so many devices, in words, and what one of them does or several do."""
    return counted(number, f"device{does}", f"devices{do}").replace(str(number), grouped(number))


FILTERS = {word.__name__: word for word in (percent, points, share, size, grouped, devices)}
