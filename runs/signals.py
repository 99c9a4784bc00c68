"""Signals that stop a run: Ctrl-C, SIGTERM (schedulers that preempt), SIGUSR1, SIGUSR2 and SIGXCPU (that warn), SIGHUP.

The first one asks; a training saves at its next step before it ends. A second one ends the process at once.
"""

import os
import signal
import time
from contextlib import contextmanager

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES |= dict.fromkeys((signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU), 143)
    EXIT_CODES |= {signal.SIGHUP: 129}  # a closed session
ECHO_SECONDS = 1.0  # a scheduler and torchrun may both pass on the same signal


class Stopped(BaseException):
    """A signal arrived; `code` is the exit code, `note` what the user is told."""

    def __init__(self, code: int):
        self.code, self.note = code, "nothing was lost"


class StopSignals:
    """Hears signals; `code` is the exit code of the one that has arrived, 0 before that."""

    def __init__(self):
        self.code = 0
        self._held = False

    def __enter__(self) -> "StopSignals":
        # what the shell has set to be ignored, as SIGINT of a job in the background, stays ignored
        heard = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
        self._earlier = {number: signal.signal(number, self._arrive) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _arrive(self, number: int, _frame) -> None:
        now = time.monotonic()
        if self.code:
            if number == self._number and now - self._arrived < ECHO_SECONDS:
                return
            os._exit(EXIT_CODES[number])
        self.code, self._number, self._arrived = EXIT_CODES[number], number, now
        if not self._held:
            raise Stopped(self.code)

    def stop_here(self) -> None:
        """Raises Stopped where a signal has arrived."""
        if self.code:
            raise Stopped(self.code)

    @contextmanager
    def held(self, held: bool = True):
        """Let a signal wait for stop_here(); with held=False one raises Stopped wherever it arrives."""
        before, self._held = self._held, held
        try:
            if not held:
                self.stop_here()
            yield
        finally:
            self._held = before
