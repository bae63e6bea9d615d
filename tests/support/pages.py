"""
The blocks of code of the documentation.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent


def block(page: str, marker: str, language: str = "python") -> str:
    """
    @param page: the path of a page in the checkout.
    @return: the only block of a language in the page that contains the marker.
    """
    text = (CHECKOUT / page).read_text()
    blocks = re.findall(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", text)
    (found,) = (each for each in blocks if marker in each)
    return textwrap.dedent(found)
