"""
Count the bytecodes that a piece of work takes.  Unlike times, they do not depend on the machine.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

__all__ = ["Cost", "costOf"]

# Code whose path contains one of these does not count, because it stands for a client or a clock.
_CLIENT = ("/pop3svc/testing/", "/tests/", "/twisted/internet/task.py", "/twisted/internet/base.py")


@dataclass
class Cost:
    """
    The cost of a piece of work.

    @ivar bytecodes: by function.
    @ivar calls: by function.
    """

    bytecodes: Counter[CodeType] = field(default_factory=Counter)
    calls: Counter[CodeType] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """
        All bytecodes.
        """
        return self.bytecodes.total()

    def __str__(self) -> str:
        lines = [f"{self.total} bytecodes in {self.calls.total()} calls"]
        for code, count in self.bytecodes.most_common(60):
            path = "/".join(code.co_filename.split("/")[-2:])
            lines.append(f"{count:6} {self.calls[code]:4} {path}:{code.co_qualname}")
        return "\n".join(lines)


def costOf(work: Callable[[], object]) -> Cost:
    """
    Do the work twice, and count the second time.

    @return: the cost of everything but the client and the clock.
    """
    work()
    cost = Cost()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event == "call":
            if any(each in code.co_filename for each in _CLIENT):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            cost.calls[code] += 1
        elif event == "opcode":
            cost.bytecodes[code] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return cost
