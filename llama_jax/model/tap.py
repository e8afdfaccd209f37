"""Where the inside of the model is read: every tensor with a name passes one `tap(name, x)`."""

from __future__ import annotations

from jax import Array

__all__ = ["Taps"]


class Taps:
    """Collects the wanted tensors of one traced call, by their names inside it.

    A tap is the identity on what it is given. What it collects must be returned by the function
    that is being traced: nothing survives a `jax.jit` by mutation.

    >>> taps = Taps({"self_attn.z"})
    >>> inside = taps.at("self_attn")
    >>> _ = inside("z", "the value"), inside("out", "another")
    >>> taps.captured
    {'self_attn.z': 'the value'}
    """

    def __init__(self, wanted: frozenset[str] | set[str] = frozenset()) -> None:
        self.wanted = wanted
        self.captured: dict[str, Array] = {}
        self._prefix = ""

    def __call__(self, name: str, x: Array) -> Array:
        if self.wants(name):
            self.captured[self._prefix + name] = x
        return x

    def wants(self, name: str) -> bool:
        """Whether `name` is asked for: what only exists to be looked at is made only then."""
        return self._prefix + name in self.wanted

    def at(self, part: str) -> Taps:
        """The same collection, seen from inside the submodule `part`."""
        inside = Taps(self.wanted)
        inside.captured = self.captured
        inside._prefix = f"{self._prefix}{part}."
        return inside
