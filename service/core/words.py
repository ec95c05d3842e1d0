"""How many of what: the one place where English makes a plural."""


def counted(number: int, one: str, many: str = "") -> str:
    """Return so many of something, as "1 device" or "2 devices".

    Args:
        number: how many.
        one: what one of them is called, or what one of them does.
        many: the same of several; without it, `one` and an s.
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"
