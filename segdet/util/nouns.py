"""Numbers with their nouns in messages."""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: ``1 image``, ``2,000 images``.

    Args:
        number: The number.
        singular: The noun, possibly with its verb, for the number 1, such as ``image is``.
        plural: The same for other numbers; default: ``singular`` with an s.
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
