"""
Parse the arguments in endpoint strings and in the strings that name providers.
"""

from __future__ import annotations

__all__ = ["parseArguments"]


def parseArguments(text: str) -> tuple[list[str], dict[str, str]]:
    """
    Parse the arguments of an endpoint string.  Colons separate them, named arguments have the form
    C{key=value}, and a backslash is the escape character.

    @return: the positional and the named arguments.
    @raise ValueError: a name is given twice.
    """
    fields: list[tuple[str, str | None]] = []
    key: str | None = None
    current = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "\\")
        elif character == ":":
            fields.append((current, key))
            current, key = "", None
        elif character == "=" and key is None:
            key, current = current, ""
        else:
            current += character
    fields.append((current, key))
    positional = [value for value, name in fields if name is None]
    named: dict[str, str] = {}
    for value, name in fields:
        if name is not None:
            if name in named:
                raise ValueError(f"{name} is given twice")
            named[name] = value
    return positional, named
