"""
Make the forms and the buttons of the playground.
"""

from __future__ import annotations

from collections.abc import Sequence

from pop3svc.web.markup import Child, Markup, joined, tag
from pop3svc.web.pages import hidden
from pop3svc.web.popclient import PlayClient

__all__ = ["mailForms", "section", "suggestions"]

# The most characters on a button, because a command with a long unique-id would be too wide.
_LONGEST_LABEL = 20


def section(name: str, title: str, content: Child, isWide: bool = False) -> Markup:
    """
    @param name: the id of the part.
    @return: a part of the playground, with a title.
    """
    return tag(
        "section",
        tag("h2", title, id=f"{name}-title"),
        content,
        id=name,
        aria_labelledby=f"{name}-title",
        class_="wide" if isWide else None,
    )


def _entry(label: str, name: str, value: str, id: str) -> Markup:
    made = tag("input", name=name, value=value, id=id, required=True, maxlength=200)
    return tag("p", tag("label", label, for_=id), made)


def mailForms(users: Sequence[str], token: str) -> Markup:
    """
    @param users: the names of users.  The first of them gets the mail unless the visitor names
        another.
    @param token: see L{Guard.token<pop3svc.web.guard.Guard.token>}.
    @return: the forms with which a visitor sends mail to a user.
    """
    user = users[0] if users else ""

    write = tag(
        "form",
        hidden(token),
        _entry("To", "to", user, "to"),
        _entry("From", "from", "Visitor <visitor@example.org>", "from"),
        _entry("Subject", "subject", "Hello", "subject"),
        tag(
            "p",
            tag("label", "Text", for_="text"),
            tag("textarea", "Nice to meet you.", name="text", id="text", rows=4),
        ),
        tag("p", tag("button", "Send", class_="primary")),
        method="post",
        action="mail",
    )
    upload = tag(
        "form",
        hidden(token),
        _entry("To", "to", user, "upload-to"),
        tag(
            "p",
            tag(
                "label",
                "A message as a file, at most 1 MiB: choose it, or drop it here",
                for_="file",
            ),
            tag(
                "input",
                type="file",
                name="file",
                id="file",
                accept=".eml,message/rfc822",
                required=True,
            ),
        ),
        tag("p", tag("button", "Deliver the file")),
        method="post",
        action="upload",
        enctype="multipart/form-data",
        class_="drop",
    )
    chance = tag(
        "form",
        hidden(token, to=user),
        tag("p", tag("button", f"Send {user or 'a user'} a random mail")),
        method="post",
        action="random",
    )
    return joined(write, chance if user else None, tag("h3", "Or deliver a file"), upload)


def _suggestion(line: str) -> Markup:
    isLong = len(line) > _LONGEST_LABEL
    return tag(
        "button",
        f"{line[:_LONGEST_LABEL]}..." if isLong else line,
        name="suggestion",
        value=line,
        title=line if isLong else None,
        id=f"try-{line}",
    )


def suggestions(
    users: Sequence[str], login: tuple[str, str] | None, client: PlayClient | None
) -> Markup:
    """
    @param login: see L{pop3svc.web.playground.Visited}.
    @param client: the connection of the visitor, which may have received a unique-id.
    @return: buttons that send commands, log in, or deliver a random mail.
    """
    uid = _lastUniqueID(client)
    rows: list[tuple[str, list[Child]]] = [
        (
            "Begin",
            [
                tag("button", f"Log in as {login[0]}", name="do", value="login", id="login")
                if login
                else None,
                _suggestion("CAPA"),
            ],
        ),
        ("Read", [_suggestion(each) for each in ("STAT", "LIST", "RETR 1", "TOP 1 0")]),
        (
            "Sleep",
            [
                _suggestion("SLEE"),
                tag("button", "Random mail", name="do", value="random", id="try-random")
                if users
                else None,
                _suggestion("WAKE"),
            ],
        ),
        (
            "UID:",
            [
                _suggestion("UIDL"),
                *((_suggestion(f"RETR UID:{uid}"), _suggestion(f"DELI UID:{uid}")) if uid else ()),
            ],
        ),
        ("Delete", [_suggestion(each) for each in ("DELI 1", "DELE 1", "CORE")]),
        ("More", [_suggestion(each) for each in ("LANG de", "NOOP", "QAUT", "QUIT")]),
    ]
    return tag(
        "div",
        *(
            tag("p", tag("span", name, class_="group"), *buttons, class_="suggestions")
            for name, buttons in rows
        ),
        role="group",
        aria_label="Suggestions",
    )


def _lastUniqueID(client: PlayClient | None) -> str:
    """
    @return: the last unique-id that UIDL has listed; empty if UIDL has listed none.
    """
    if client is None:
        return ""
    found, isListing = "", False
    for side, text in client.lines:
        if side == "C":
            isListing = text.upper().startswith("UIDL")
        elif isListing and text[:1].isdigit() and text.count(" ") == 1:
            found = text.split(" ")[1]
    return found
