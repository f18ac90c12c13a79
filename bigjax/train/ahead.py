"""Compiles a program in a thread, while the main thread compiles or runs others."""

from collections.abc import Callable
import contextlib
import threading
from typing import Any

import jax


class Ahead:
    """A jitted function. `start` compiles it in a thread; the next call waits for that."""

    def __init__(self, function: Callable) -> None:
        self._function, self.trace = function, function.trace
        self.__wrapped__ = function.__wrapped__  # not jitted
        self._thread: threading.Thread | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self._thread:
            self._thread.join()
            self._thread = None
        return self._function(*arguments)

    def start(self, traced: jax.stages.Traced, mesh) -> None:
        """Starts to compile it for the arguments of `traced`, its trace on a mesh.

        Only on the CPU of one host. On a GPU the compiler measures kernels, which programs that run
        meanwhile would disturb.
        """
        if mesh.devices.flat[0].platform != "cpu" or jax.process_count() > 1:
            return

        def compile_traced() -> None:
            # The call compiles what this could not, and raises its error.
            with contextlib.suppress(Exception), jax.set_mesh(mesh):
                traced.lower().compile()

        self._thread = threading.Thread(target=compile_traced, name="compile")
        self._thread.start()
