"""Times as people say them."""


def in_words(seconds: float) -> str:
    """``"45 s"``, ``"6 min"``, ``"1 h 30 min"``."""
    if round(seconds) < 120:
        return "1 min" if round(seconds) == 60 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
