"""Lets compiled programs go before a process has no memory maps left for them.

Linux gives a process 65,530 maps (`vm.max_map_count`), and each program that XLA compiles for a CPU
takes 55 to 90 of them and keeps them; at the end LLVM aborts the process ("Unable to allocate
section memory"). A notebook that asks questions of prompts of all lengths gets there.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any

import jax

__all__ = ["Programs", "programs"]

MAPS = Path("/proc/self/maps")
LIMIT = Path("/proc/sys/vm/max_map_count")
# Of the limit, what is left to programs before they are let go; and what one takes at most.
SHARE = 0.6
MAPS_OF_ONE = 200


class Programs:
    """Counts what is compiled, and looks at the maps only where they may have become many."""

    def __init__(self) -> None:
        self.compiled = 0
        self.next_look = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **details: Any) -> None:
        self.compiled += event == "/jax/core/compile/backend_compile_duration"

    def let_go(self) -> None:
        """Forgets all compiled programs where their maps are many: what is used again is compiled
        again, or loaded from the persistent cache. Costs nothing else but a comparison.
        """
        if self.compiled < self.next_look:
            return
        with contextlib.suppress(OSError, ValueError):  # no Linux
            room = int(SHARE * int(LIMIT.read_text()))
            maps = MAPS.read_bytes().count(b"\n")
            if maps > room:
                jax.clear_caches()
                gc.collect()
                maps = MAPS.read_bytes().count(b"\n")
            self.next_look = self.compiled + max(16, (room - maps) // MAPS_OF_ONE)
            return
        self.next_look = 2**62


programs = Programs()
