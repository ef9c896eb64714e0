"""Work in a thread: one training or benchmark at a time, and traits that tell of it meanwhile."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

import traitlets

from kerascohost import errors
from kerascohost.backends import threads
from kerascohost.errors import CohortError

# Progress and curves are updated at most this often (in seconds), and drawing either takes at most
# this share of the time, as it slows down the training.
_EVERY = 0.4
_SHARE = 0.02

# Held by the one training or benchmark that runs: the backends do not support training in several
# threads at once.
_running = threading.Lock()

# Functions that return the current values of traits, by the names of the traits.
Tells: TypeAlias = Mapping[str, Callable[[], object]]


class Worker:
    """Runs a training or benchmark in a thread, and updates the traits of an object meanwhile.

    Args:
        traits: The object. Its traits `work`, `status` and `message` say what runs and how it
            ended.
        fail: Called with `work` and the text of an error: of what was started, or of an observer.
    """

    def __init__(self, traits: traitlets.HasTraits, fail: Callable[[str, str], None]):
        self._traits = traits
        self._fail = fail
        self._work = ""
        self._thread: threading.Thread | None = None
        self._keras_state = threads.thread_state()

    def follow_main_thread(self) -> None:
        """Takes over Keras's state of this thread for those to come, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._keras_state = threads.thread_state()

    def start(self, work: str, status: str, action: Callable[[], str], tells: Tells) -> None:
        """Starts a training or benchmark.

        Args:
            work: What it is: `"train"` or `"benchmark"`.
            status: The status while it runs.
            action: Does it; returns a sentence on how it ended.
            tells: The traits to update meanwhile; one of them is `progress`.

        Raises:
            CohortError: If a training or benchmark runs already, be it another worker's.
        """
        if not _running.acquire(blocking=False):
            raise CohortError("Expected one training or benchmark at a time. Received: a second.")
        self._work = work
        self._traits.set_trait("work", work)
        self.tell("message", lambda: "")
        self.tell("progress", tells["progress"])
        self.tell("status", lambda: status)
        self._thread = threading.Thread(
            target=self._run, args=(action, tells), name=f"kerascohost-{status}", daemon=True
        )
        self._thread.start()

    def wait(self, timeout: float | None) -> None:
        """Waits for the end of the thread, at most `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def tell(self, trait: str, value: Callable[[], object]) -> None:
        """Updates one trait; an exception, such as an observer's, fails nothing but is told.

        Args:
            trait: The trait.
            value: Returns its current value.
        """
        try:
            self._set(trait, value())
        except Exception as error:
            text = f"The {trait} could not be shown. {type(error).__name__}: {error}"
            self._fail(self._work, text)

    def _set(self, trait: str, value: object) -> None:
        """Sets a trait if its value is new."""
        if value != getattr(self._traits, trait):
            self._traits.set_trait(trait, value)

    def _run(self, action: Callable[[], str], tells: Tells) -> None:
        """Runs `action` in this thread, and `_tell_all` in another one meanwhile."""
        ended = threading.Event()
        teller = threading.Thread(target=self._tell_all, args=(ended, tells), daemon=True)
        teller.start()
        message = ""
        try:
            with threads.as_in_thread(self._keras_state):
                message = action()
        except Exception as error:
            self._fail(self._work, errors.in_words(error))
            message = "Failed; the error says why."
        finally:
            ended.set()
            teller.join()
            _running.release()
            self.tell("message", lambda: message)
            self.tell("status", lambda: "idle")

    def _tell_all(self, ended: threading.Event, tells: Tells) -> None:
        """Updates traits until the event, and once more after it."""
        due = dict.fromkeys(tells, 0.0)
        while not ended.wait(_EVERY):
            for trait, tell in tells.items():
                began = time.perf_counter()
                if began >= due[trait]:
                    self.tell(trait, tell)
                    now = time.perf_counter()
                    due[trait] = now + (now - began) / _SHARE
        for trait, tell in tells.items():
            self.tell(trait, tell)
