"""Which random keys a program draws with."""

import collections

import jax
import numpy as np


class Draws:
    """Notes each draw of jax.random.bernoulli, uniform and categorical, from when it is made.

    Attributes: traced, how many draws were traced; in a scan they are made more often.
    """

    def __init__(self, monkeypatch):
        self.clear()
        for name in ("bernoulli", "uniform", "categorical"):
            monkeypatch.setattr(jax.random, name, self._noting(name, getattr(jax.random, name)))

    def clear(self) -> None:
        jax.effects_barrier()
        self.traced, self._made = 0, []

    def _noting(self, name, draw):
        def noting(key, *args, **kwargs):
            self.traced += 1
            share = round(args[0], 6) if name == "bernoulli" else name
            data = jax.random.key_data(key)
            jax.debug.callback(lambda k: self._made.append((share, np.asarray(k).tobytes())), data)
            return draw(key, *args, **kwargs)

        return noting

    def shares(self) -> dict:
        """How many draws of jax.random.bernoulli were made, by their probability."""
        jax.effects_barrier()
        return dict(collections.Counter(s for s, _ in self._made if not isinstance(s, str)))

    def check_distinct(self, n: int) -> None:
        """That n draws were made, no two of them with one key."""
        jax.effects_barrier()
        keys = [key for _, key in self._made]
        assert len(keys) == n and len(set(keys)) == n, f"{len(set(keys))} keys, {len(keys)} draws"
