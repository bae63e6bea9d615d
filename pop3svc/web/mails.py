"""
Make mails from what a visitor of the playground writes, and random mails.
"""

from __future__ import annotations

import random
from email import policy
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from textwrap import fill

__all__ = ["makeMail", "randomMail"]

_POLICY = policy.SMTP.clone(max_line_length=78)
# The most octets of a line, without its CRLF (RFC 5322 section 2.1.1).
_LONGEST = 998
# This generator is not cryptographic, because random mails need no unpredictable numbers.
_random = random.Random()

_PEOPLE = (
    *("Ada", "Grace", "Katherine", "Hedy", "Radia", "Zoë", "José", "Jürgen", "Søren", "Łukasz"),
)
_SUBJECTS = (
    *("Lunch on Friday?", "The garden gate", "Your bicycle", "Minutes of the meeting"),
    *("A parcel for you", "Photos from the lake", "Café on the corner", "Grüße aus Köln"),
)
_SENTENCES = (
    "The train was late again, so I had time to read your letter twice.",
    "Could you bring the blue folder tomorrow?",
    "The cat has learnt to open the kitchen door.",
    "We have two tickets left; tell me by noon if you would like one.",
    "It rained all day, and the cellar stayed dry.",
    "Nobody has found the key yet.",
    "The soup needs an hour; the bread needs a night.",
    "I have moved the appointment to Thursday at nine.",
)


def makeMail(sender: str, recipient: str, subject: str, body: str) -> bytes:
    """
    @return: a message with these header fields and this text.
    @raise ValueError: a header field cannot have its text.  The message of the error is one
        sentence.
    """
    message = EmailMessage(_POLICY)
    fields = (("From", sender), ("To", recipient), ("Subject", subject))
    for name, value in fields:
        # Refuse line ends, because they would begin another header field.
        if not value.isprintable():
            raise ValueError(f"{name} has characters that a header field must not have.")
        try:
            message[name] = value
            # Check the decoded text too, because an encoded word (RFC 2047) may contain line ends.
            isPossible = str(message[name]).isprintable()
        except (ValueError, IndexError, AttributeError):
            # The parser of the standard library raises these errors for some malformed input.
            isPossible = False
        if not isPossible:
            raise ValueError(f"{name} is not possible in a mail.")
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="localhost")
    # If all lines are short, do not encode the text, because a visitor reads the octets as POP3
    # transmits them.
    isShort = all(len(line.encode("utf-8", "replace")) < _LONGEST for line in body.split("\n"))
    message.set_content(body, cte="8bit" if isShort else None)
    try:
        return message.as_bytes()
    except (ValueError, IndexError, AttributeError, UnicodeError):
        raise ValueError("These header fields are not possible in a mail.")


def randomMail(recipient: str) -> bytes:
    """
    @return: a short message with a random sender, subject and text.
    """
    name = _random.choice(_PEOPLE)
    paragraphs = [
        fill(" ".join(_random.sample(_SENTENCES, _random.randint(1, 3))), 72)
        for _ in range(_random.randint(1, 3))
    ]
    body = "\n\n".join([f"Hello {recipient},", *paragraphs, f"{name}\n"])
    address = f"{name.lower()}@example.org" if name.isascii() else "friend@example.org"
    sender = f"{name} <{address}>"
    return makeMail(sender, recipient, _random.choice(_SUBJECTS), body)
