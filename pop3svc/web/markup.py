"""
Build HTML.  All text is escaped, except a L{Markup}, which is HTML already.
"""

from __future__ import annotations

from html import escape

from pop3svc.logs import escaped

__all__ = ["Child", "Markup", "joined", "tag", "text"]

# Elements without an end tag (HTML, section 13.1.2).
_VOID = frozenset(["br", "hr", "input", "link", "meta"])


class Markup(str):
    """
    A text that is HTML already.
    """

    __slots__ = ()


# The possible content of an element: a Markup, a text that has to be escaped, or nothing.
Child = str | int | float | None


def text(value: object) -> Markup:
    """
    @param value: any text, such as text from a client.
    @return: the text as HTML.  Characters that are not printable, such as marks that change the
        direction of writing, become escape sequences.
    """
    return Markup(escape(escaped(str(value))))


def joined(*children: Child) -> Markup:
    """
    @return: all children, as one piece of HTML.
    """
    return Markup(
        "".join(
            each if isinstance(each, Markup) else text(each)
            for each in children
            if each is not None
        )
    )


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """
    Make an element.

    @param children: the content of the element.  A text is escaped, and a L{Markup} is not.
    @param attributes: the attributes of the element.  An underscore stands for a hyphen, as in
        C{data_label}, and an underscore at the end is removed, as in C{class_}.  An attribute that
        is L{None} or C{False} is left out.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        parts.append(f" {written}" if value is True else f' {written}="{text(value)}"')
    parts.append(">")
    if name not in _VOID:
        parts.append(f"{joined(*children)}</{name}>")
    return Markup("".join(parts))
