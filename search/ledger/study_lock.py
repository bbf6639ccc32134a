"""One driver at a time on a study in PostgreSQL, wherever its sweep's folder is.

The folder's own lock (`lock.py`) knows nothing of a copy of the folder on another host. PostgreSQL
knows both drivers: an advisory lock belongs to one of them, and ends with its connection. It is
taken in a transaction that stays open, because a pooler keeps a connection for one client only as
long as that.
"""

from __future__ import annotations

import select
from typing import Any

CONNECT_SECONDS = 5
"""For which a server may let us wait for a connection."""
_PROBES = {"idle": 5, "interval": 5, "count": 3}
NOTICED_SECONDS = 30.0
"""After which the server surely knows that a driver's host is gone, and a driver that the server
is: silence is probed after 5 seconds, three times."""


class StudyLock:
    """The right to write a study, once it was taken and as long as its connection lives."""

    def __init__(self, address: str, study: str) -> None:
        """`address` as libpq reads it."""
        self._address, self._study = address, study
        self._connection: Any = None
        self._taken = False

    def take(self) -> bool:
        """Whether the study is ours, taken now if it can be: a server that was restarted has
        forgotten it. Raises `psycopg.Error`."""
        if self._taken and not self._has_news():
            return True
        try:
            if self._connection is None:
                self._connect()
            question = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
            cursor = self._connection.execute(question, (f"few-shot-search/{self._study}",))
            self._taken = cursor.fetchone()[0]
        except BaseException:
            self.release()
            raise
        return self._taken

    def release(self) -> None:
        """Let it go, if it was taken."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._taken = None, False

    def _has_news(self) -> bool:
        """Whether the connection has something to say, such as its end. Asks nobody."""
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _connect(self) -> None:
        import psycopg

        ours = {f"keepalives_{name}": value for name, value in _PROBES.items()}
        self._connection = psycopg.connect(
            self._address, connect_timeout=CONNECT_SECONDS, keepalives=1, **ours
        )
        for name, value in _PROBES.items():
            self._connection.execute(f"SET LOCAL tcp_keepalives_{name} = {value}")
        self._connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
