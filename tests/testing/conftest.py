"""
The new project is tested by itself, in L{test_newproject}.
"""

from __future__ import annotations

collect_ignore = ["newproject"]
