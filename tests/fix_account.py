"""What became of each message of a run under faults.

Whoever sends or receives notes it under the message's number, in any process.
At the end ``balance()`` wants an explanation for everything that is not as if
nothing had happened.
"""

import collections
import dataclasses
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["Account", "Entry", "Event", "Excuse"]

KINDS = ("call", "cast", "fanout", "notification")
EVENTS = ("sent", "confirmed", "delivered", "executed", "answered", "raised")


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened: one of EVENTS, when (monotonic), to whom."""

    number: int
    what: str
    at: float
    who: str = ""  # executed, delivered: the server; sent: the kind
    detail: str = ""  # raised: the exception


@dataclasses.dataclass
class Entry:
    """One message and all that is known of it."""

    number: int
    kind: str = ""
    events: list[Event] = dataclasses.field(default_factory=list)

    def all(self, what: str) -> list[Event]:
        return [event for event in self.events if event.what == what]

    def at(self, what: str) -> float | None:
        """Tell when something happened first."""
        return min((event.at for event in self.all(what)), default=None)

    def executions(self) -> dict[str, int]:
        """Tell who executed it, and how often."""
        return dict(collections.Counter(event.who for event in self.all("executed")))

    def problems(self, servers: Iterable[str]) -> list[str]:
        """Tell what needs an explanation.

        :param servers: who has to hear each fanout.
        """
        runs = self.executions()
        good = "answered" if self.kind == "call" else "confirmed"
        found = []
        if not self.all("sent"):
            return ["received though nobody sent it"]
        ends = len(self.all("answered")) + len(self.all("raised"))
        if self.kind != "call":
            ends = len(self.all("confirmed")) + len(self.all("raised"))
        if ends != 1:
            found.append(f"ended {ends} times")
        if self.all("raised"):
            found.append("raised")
        elif self.all(good) and not runs:
            found.append("lost")
        if self.all(good) and self.kind == "fanout":
            found += [f"not heard by {name}" for name in servers if name not in runs]
        if self.kind != "fanout" and len(runs) > 1:
            found.append("executed by several")
        if self.kind != "notification" and any(count > 1 for count in runs.values()):
            found.append("executed twice by one")
        return found


@dataclasses.dataclass
class Excuse:
    """An explanation: of which problems, of which messages, of how many."""

    why: str
    problem: str
    holds: Callable[[Entry], object]
    limit: int | None
    used: int = 0


class Account:
    """Collects events from any thread, and of other processes from a file.

    :param journal: a file to write each event to at once, so that it survives
        a SIGKILL of this process.
    :param base: where numbers begin: each sender has its own.
    """

    def __init__(self, journal: Path | None = None, base: int = 0) -> None:
        self._numbers = itertools.count(base)
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._counts: collections.Counter[str] = collections.Counter()
        self._excuses: list[Excuse] = []
        self._journals: dict[Path, int] = {}
        self._file = -1
        if journal is not None:
            self._file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @staticmethod
    def now() -> float:
        """The clock of all events."""
        return time.monotonic()

    def new(self, kind: str) -> int:
        """Give the number of a message that is about to be sent."""
        assert kind in KINDS
        number = next(self._numbers)
        self.note(number, "sent", kind)
        return number

    def note(self, number: int, what: str, who: str = "", detail: str = "") -> None:
        event = Event(number, what, time.monotonic(), who, detail)
        if self._file >= 0:
            line = json.dumps(dataclasses.astuple(event)) + "\n"
            os.write(self._file, line.encode())
        self._add([event])

    def _add(self, events: Iterable[Event]) -> None:
        with self._changed:
            for event in events:
                self._events.append(event)
                self._counts[event.what] += 1
            self._changed.notify_all()

    def read(self, journal: Path) -> None:
        """Take over what another process has written since the last time."""
        with journal.open("rb") as file:
            file.seek(self._journals.get(journal, 0))
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._journals[journal] = self._journals.get(journal, 0) + len(whole)
        self._add(Event(*json.loads(line)) for line in whole.splitlines())

    # --- looking ---

    def count(self, what: str) -> int:
        with self._changed:
            return self._counts[what]

    def wait(self, what: str, count: int, timeout: float = 20.0) -> None:
        """Sleep until something has happened so many times."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._counts[what] >= count, timeout
            ), f"{self._counts[what]} of {count} {what} within {timeout} s"

    def wait_after(self, what: str, moment: float, timeout: float = 20.0) -> float:
        """Sleep until something happened to a message that was sent after a
        moment; give how long after it that was."""
        found: list[float] = []
        place = 0
        sent: set[int] = set()

        def look() -> bool:
            nonlocal place
            for event in self._events[place:]:
                if event.what == "sent" and event.at >= moment:
                    sent.add(event.number)
                elif event.what == what and event.number in sent:
                    found.append(event.at - moment)
            place = len(self._events)
            return bool(found)

        with self._changed:
            assert self._changed.wait_for(look, timeout), (
                f"nothing {what} within {timeout} s"
            )
        return min(found)

    def entries(self) -> list[Entry]:
        entries: dict[int, Entry] = {}
        with self._changed:
            events = sorted(self._events, key=lambda event: event.at)
        for event in events:
            entry = entries.setdefault(event.number, Entry(event.number))
            entry.events.append(event)
            if event.what == "sent":
                entry.kind = event.who
        return [entries[number] for number in sorted(entries)]

    def most_executions(self) -> int:
        """Tell how often one server executed the same message, at most."""
        runs = [count for it in self.entries() for count in it.executions().values()]
        return max(runs, default=0)

    # --- balancing ---

    def excuse(
        self,
        problem: str,
        why: str,
        holds: Callable[[Entry], object] = lambda entry: True,
        limit: int | None = None,
    ) -> None:
        """Explain a problem.

        :param problem: as in :meth:`Entry.problems`; a prefix of it will do.
        :param holds: of which messages.
        :param limit: of how many messages at most.
        """
        self._excuses.append(Excuse(why, problem, holds, limit))

    def _is_excused(self, entry: Entry, problem: str) -> bool:
        for excuse in self._excuses:
            if not problem.startswith(excuse.problem) or not excuse.holds(entry):
                continue
            if excuse.limit is None or excuse.used < excuse.limit:
                excuse.used += 1
                return True
        return False

    def balance(self, servers: Iterable[str] = (), within: float = 5.0) -> str:
        """Fail with a table unless everything is as if nothing had happened,
        or explained; else give one line with the sums.

        :param servers: who has to hear each fanout.
        :param within: how long to wait for what is still on its way.
        """
        servers = list(servers)
        deadline = time.monotonic() + within
        while True:
            # Before looking: what happens meanwhile is a reason to look again.
            place = len(self._events)
            unexplained = self._unexplained(servers)
            left = deadline - time.monotonic()
            if not unexplained:
                break
            with self._changed:
                if left <= 0 or not self._changed.wait_for(
                    lambda place=place: len(self._events) > place, left
                ):
                    break
        if unexplained:
            raise AssertionError(self._table(unexplained))
        return self.sums()

    def _unexplained(self, servers: list[str]) -> list[tuple[Entry, str]]:
        entries = self.entries()
        assert entries, "nothing was sent"
        for excuse in self._excuses:
            excuse.used = 0
        return [
            (entry, problem)
            for entry in entries
            for problem in entry.problems(servers)
            if not self._is_excused(entry, problem)
        ]

    def sums(self) -> str:
        parts = [f"{self.count(what)} {what}" for what in EVENTS if self.count(what)]
        parts += [
            f"{it.used} {it.problem}: {it.why}" for it in self._excuses if it.used
        ]
        return ", ".join(parts)

    def _table(self, unexplained: list[tuple[Entry, str]]) -> str:
        start = min(entry.events[0].at for entry in self.entries())
        lines = [
            f"the account does not balance: {len(unexplained)} unexplained",
            f"  in all: {self.sums()}",
            f"  {'number':>8} {'kind':<12} {'problem':<28} what happened, in s",
        ]
        for entry, problem in unexplained[:40]:
            story = ", ".join(
                " ".join(
                    filter(
                        None,
                        (
                            f"{event.at - start:.3f}",
                            event.what,
                            event.who if event.what != "sent" else "",
                            event.detail,
                        ),
                    )
                )
                for event in entry.events
            )
            lines.append(f"  {entry.number:>8} {entry.kind:<12} {problem:<28} {story}")
        if len(unexplained) > 40:
            lines.append(f"  and {len(unexplained) - 40} more")
        return "\n".join(lines)
