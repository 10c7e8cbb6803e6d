"""Sends journals to the store in a thread while the stage works; what could not be sent is kept for later."""

import shutil
import threading
import time
from contextlib import ExitStack

from fieldguide.core.errors import UserError
from fieldguide.core.paths import journals
from fieldguide.tracking.journal import Journal, all_journals
from fieldguide.tracking.store import Store, faults, in_words, store_name, warn

RETRY_SECONDS = 30.0  # between attempts to reach a store
PATIENCE_SECONDS = {"remote": 15.0, "local": 120.0}  # that a stage waits at its end while the store accepts nothing
NO_ANSWER = "the store did not answer in time"


class Sender:
    """A thread that sends journals, oldest first; `own` is the one that this process writes."""

    def __init__(self, own: Journal | None = None) -> None:
        self.own = own
        self.wake, self.closing, self.abandoned = threading.Event(), threading.Event(), threading.Event()
        self.fault = ""  # of the last attempt
        self.taken = 0.0  # time of the last accepted entry, seconds
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.thread.start()

    def finish(self) -> bool:
        """Waits until all is sent or the store has accepted nothing for too long; whether all is sent."""
        self.taken = time.monotonic()
        self.closing.set()
        self.wake.set()
        patience = PATIENCE_SECONDS["remote" if store_name().startswith("http") else "local"]
        while self.thread.is_alive() and time.monotonic() - self.taken < patience:
            self.thread.join(0.05)
        self.abandoned.set()
        return not self.thread.is_alive() and not self.fault

    def _work(self) -> None:
        has_warned = False
        while not self.abandoned.is_set():
            closing = self.closing.is_set()  # read before the attempt: later entries are for the next one
            self.wake.clear()
            self.fault = NO_ANSWER  # unless the attempt ends
            try:
                self._send()
                self.fault = ""
            except faults() as error:
                self.fault = in_words(error)
            if closing:
                return
            if self.fault and not has_warned:  # else `finish` reports it
                warn(f"{self.fault}; what is logged is kept in {journals()} and sent when the store can be reached")
                has_warned = True
            if self.fault:
                self.closing.wait(RETRY_SECONDS)
            else:
                self.wake.wait()

    def _send(self) -> None:
        """Sends all journals; a store's error about an artifact is raised only after the other journals are sent."""
        store: Store | None = None
        fault: Exception | None = None
        for journal in all_journals():
            if journal.store != store_name():
                continue
            with ExitStack() as stack:
                if self.own is None or journal.folder != self.own.folder:
                    if not stack.enter_context(journal.held()):
                        continue  # its run is active
                    if journal.last() not in ("", "end"):
                        journal.append("end", status="KILLED")  # its process has died
                store = store or Store()
                try:
                    self._send_one(journal, store)
                except faults() as error:
                    if not store.at_file:
                        raise
                    fault = fault or error
        if fault:
            raise fault

    def _send_one(self, journal: Journal, store: Store) -> None:
        for entry, position in journal.unsent():
            if self.abandoned.is_set():
                return
            store.send(journal, entry)
            journal.mark(position)
            self.taken = time.monotonic()
        if journal.last() == "end" and not journal.n_unsent():  # in this order: an end may be written meanwhile
            shutil.rmtree(journal.folder, ignore_errors=True)


def send_all() -> str:
    """Sends what earlier runs could not send; a summary in words. Raises `UserError` if the store fails."""
    before = len(unsent_journals())
    sender = Sender()
    all_sent, left = sender.finish(), unsent_journals()
    if not all_sent:
        raise UserError(f"MLflow: {sender.fault}; {left_words(left)}")
    return f"MLflow: {before - len(left)} runs sent" + (f"; {left_words(left)}" if left else "")


def unsent_journals() -> list[Journal]:
    return [journal for journal in all_journals() if journal.n_unsent()]


def left_words(left: list[Journal]) -> str:
    """How many entries are unsent, where they are kept and how to send them."""
    n_entries = sum(journal.n_unsent() for journal in left)
    others = {journal.store or "" for journal in left} - {store_name()}
    return (
        f"{n_entries} entries of {len(left)} runs are not sent; they are kept in {journals()} and go out with the next run, or"
        " by: python -m fieldguide sync" + (f" (with MLFLOW_TRACKING_URI for {', '.join(sorted(others))})" if others else "")
    )
