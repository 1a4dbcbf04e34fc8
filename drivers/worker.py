"""A thread that owns a connection: what a vendor's blocking calls are made on.

COM objects belong to the thread that made them, and an exposure that is asked for returns only
when it has ended. So each connection has a thread of its own, and those who ask wait for its
answer no longer than they want to.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Connection = TypeVar("Connection")
Answer = TypeVar("Answer")

_Task = tuple[Callable[[Any], Any], "Future[Any]"]


class Worker(Generic[Connection]):
    """Makes a connection on a thread of its own and does with it what it is asked, in order.

    Parameters
    ----------
    name : str
        Of the thread.
    connect : callable
        Makes the connection; called on the thread for the first task, and again for the first one
        after a task that failed.
    disconnect : callable
        Given a connection that is used no more; it must not raise.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        disconnect: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        self._connect = connect
        self._disconnect = disconnect
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # A vendor's call that never returns must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[Connection], Answer]) -> Future[Answer]:
        """Have a task done after those before it; the future holds its answer or its error."""
        answer: Future[Answer] = Future()
        self._tasks.put((task, answer))
        return answer

    def call(
        self, task: Callable[[Connection], Answer], timeout_s: float, *, even_late: bool = False
    ) -> Answer:
        """Have a task done and wait for it.

        Parameters
        ----------
        task : callable of the connection
            What to do.
        timeout_s : float
            How long to wait.
        even_late : bool
            Whether it is to be done where nobody waits for it any more, and it had not begun.

        Raises
        ------
        TimeoutError
            It was not done in time. It may be done later.
        Exception
            What the task raised.
        """
        answer = self.submit(task)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            # It may have come just now, or be an error of the task itself.
            if (even_late or not answer.cancel()) and answer.done():
                return answer.result()
            raise

    def close(self) -> None:
        """Take no more tasks. The thread ends when it has done those it has; nobody waits."""
        self._tasks.put(None)

    def _run(self) -> None:
        connection: Connection | None = None
        while (item := self._tasks.get()) is not None:
            task, answer = item
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                if connection is None:
                    connection = self._connect()
                answer.set_result(task(connection))
            except BaseException as error:
                if connection is not None:
                    self._disconnect(connection)
                    connection = None
                answer.set_exception(error)
            # Neither a result nor an error is kept longer than its reader wants it.
            del item, task, answer
        if connection is not None:
            self._disconnect(connection)
