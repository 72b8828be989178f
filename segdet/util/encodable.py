"""Texts that can be written as UTF-8."""


def encodable(text: str) -> str:
    """Return ``text`` with escapes in place of characters that UTF-8 lacks.

    File names on Linux may be any bytes. Python represents those that are not UTF-8 by lone surrogates, which no file
    and no terminal accepts. Different names stay different.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
