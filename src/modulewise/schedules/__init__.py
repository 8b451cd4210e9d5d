"""Who sees which batch when, and which version of the upstream part: pure state machines, no tensors.

An engine asks a schedule for the next piece of work, does it, and tells how it went; a test or a simulation can do the
same with nothing but events.

>>> schedule, state = simultaneous, simultaneous.start(parts=2, epochs=1)
>>> event = Event.START
>>> for _ in range(4):
...     state, work = schedule.next(state, event)
...     print(work.batch, work.part, work.upstream)
...     event = Event.DONE
0 0 0
0 1 0
1 0 1
1 1 1
>>> schedule.next(state, Event.DONE)[0].batch, schedule.next(schedule.next(state, event)[0], Event.EXHAUSTED)[1]
(2, None)
"""

from .actors import Actors
from .machine import FINAL, Event, Schedule, State, Work
from .ordered import Pipelined, Sequential, Simultaneous, pipelined, sequential, simultaneous
from .paced import Asynchronous, asynchronous

__all__ = [
    "FINAL",
    "Actors",
    "Asynchronous",
    "Event",
    "Pipelined",
    "Schedule",
    "Sequential",
    "Simultaneous",
    "State",
    "Work",
    "asynchronous",
    "pipelined",
    "sequential",
    "simultaneous",
]
