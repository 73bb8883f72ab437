"""What to say to somebody who gives a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def instead(name: str, known: Collection[str], most: int = 60) -> str:
    """The names that are nearest; where none is near all that there are, or the first ones.

    Args:
        name: That nothing has.
        known: Those that there are.
        most: How many to list.

    Example:
        >>> from lightning_hnd.instead import instead
        >>> instead("Smilling", ["Smiling", "Eyeglasses"]), instead("hat", ["Smiling", "Eyeglasses"], most=1)
        ('did you mean Smiling?', 'there are Smiling, ...')
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    listed = [*known][:most] + ["..."] * (len(known) > most)
    return f"there {'is' if len(known) < 2 else 'are'} {', '.join(listed) or 'none'}"
