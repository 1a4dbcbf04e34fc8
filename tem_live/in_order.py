"""Frames in the order of their ids, from a queue that they come to as they are processed."""

from __future__ import annotations

import queue
from collections.abc import Iterator

from tem_live.errors import DeviceError
from tem_live.state import Frame


def in_order(inbox: queue.SimpleQueue[Frame | str], first: int, n: int) -> Iterator[Frame]:
    """Frames ``first`` to ``first + n - 1``; one being restored may be overtaken by later ones.

    Parameters
    ----------
    inbox : SimpleQueue of Frame or str
        Frames, and the reason when their run has ended.
    first : int
        Id of the first frame; earlier ones are left out.
    n : int
        How many.

    Yields
    ------
    Frame
        Fewer than ``n`` where the run has ended before, but without an error.

    Raises
    ------
    DeviceError
        The run ended with an error before all had come.
    """
    early: dict[int, Frame] = {}
    following, end = first, first + n
    while following < end:
        item = inbox.get()
        if isinstance(item, str):
            yield from (early[frame_id] for frame_id in sorted(early) if frame_id < end)
            if item.startswith("error: "):
                raise DeviceError(item.removeprefix("error: "))
            return
        if item.meta.frame_id >= first:
            early[item.meta.frame_id] = item
        while following < end and following in early:
            yield early.pop(following)
            following += 1
