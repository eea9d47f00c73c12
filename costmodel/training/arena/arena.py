"""The planned arena: rehearse a step, plan a place for each of its tensors, replay.

    arena = costmodel.Arena()
    for images, labels in loader:
        with arena.step(images.shape):
            loss(network(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

A training step allocates the same blocks in the same order every time. Malloc does not know that: it keeps up to
several times what lives (fast, but the process is large), or gives back at once what is freed (small, but slow, since
every page is taken anew). Here a first steps are rehearsed, with memory given back at once; from what was seen each
block gets its place in one region, hardly larger than the most that lives at one time; later steps replay that. The
region stays mapped, so that no page is taken twice.

What a step computes does not depend on where its tensors are: losses and parameters are those without the arena, bit
for bit. A step that allocates something else than was rehearsed still runs (the allocator looks for room itself), and
one that does so again and again is rehearsed anew.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import InputError
from ...machine.process import POLICIES
from ...step.placement import Blocks, Placement, place
from ...units import Counts
from .compiled import NotBuiltError, library, tighten_malloc

_WARM = 1  # steps of a kind before it is recorded: the first makes what stays (optimizer's state, gradients)
_MOST_RECORDED = 6  # after so many steps that are not alike the last one is planned for
# A replayed step is off its plan if more of the blocks than this were not as planned; so many in a row, and the kind
# is rehearsed anew. Assumption: a few irregular blocks cost less than a rehearsal, which takes several steps.
_OFF, _MOST_OFF = 0.02, 3
_REHEARSAL, _REPLAY = 1, 2
_SMALL_BYTES = 4096  # smaller blocks are malloc's, and not planned. Source: small in allocator.cpp
_GUARD_BYTES = 64  # behind each block with `check`. Source: GUARD in allocator.cpp
_COUNTS = (
    "planned", "unexpected", "occupied", "in_gap", "mapped", "foreign", "damaged", "missing", "most_bytes",
    "region_used_bytes", "mapped_bytes", "region_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Use:
    """How the blocks of one step (of 4096 bytes and more) were placed.

    planned: at their planned place. unexpected: not in the plan, or in it and not asked for. occupied: whose place was
    still taken. in_gap: put into a free gap of the region instead. mapped: alone, by the system. foreign: of other
    threads. damaged: blocks written to where they do not live (looked for with `check` alone). missing: what the plan
    had left at the end. most_bytes: that lived at one time, in the region and mapped alone.
    """

    planned: int
    unexpected: int
    occupied: int
    in_gap: int
    mapped: int
    foreign: int
    damaged: int
    missing: int
    most_bytes: int
    region_used_bytes: int
    mapped_bytes: int
    region_bytes: int

    @property
    def is_off(self) -> bool:
        """Whether the step was not as planned."""
        return self.unexpected + self.occupied + self.missing > _OFF * max(self.planned, 1)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A rehearsed step: the bytes of its planned blocks in order, and those of them that live less than a turn.

    inside: which ones these are, [blocks] of truth; blocks: their lifetimes.
    """

    sizes: Counts
    inside: np.ndarray
    blocks: Blocks

    @classmethod
    def of(cls, log: Counts, begin: int, end: int, next_begin: int) -> Recorded:
        """Return the step whose allocations are log[begin:end]; the next step begins at next_begin.

        log: +bytes of an allocation, -(its number + 1) of its free, in the order of time.
        """
        birth = np.flatnonzero(log > 0)
        death = np.full(len(birth), -1, np.int64)
        freed = np.flatnonzero(log < 0)
        death[-log[freed] - 1] = freed
        own = (birth >= begin) & (birth < end) & (log[birth] >= _SMALL_BYTES)
        start, stop = birth[own] - begin, death[own] - begin
        turn = next_begin - begin
        inside = (stop >= 0) & (stop - start < turn)
        sizes = log[birth[own]]
        return cls(sizes, inside, Blocks(sizes[inside], start[inside], stop[inside], turn))


@dataclass
class _Kind:
    """What is known of steps of one kind. number: of the plan in the allocator, once there is one."""

    steps: int = 0
    recorded: list[Recorded] = field(default_factory=list)
    number: int | None = None
    placement: Placement | None = None
    off: int = 0


@dataclass(frozen=True)
class _Mark:
    """A recorded step's place in the log."""

    kind: _Kind
    begin: int
    end: int


class Arena:
    """Plans the memory of the steps that run in it; see the module's text.

    policy: a name in `costmodel.POLICIES`; with another one than 'arena' nothing is planned, and a step runs as it is.
    check: look for writes to memory that is not the writer's, with guard values (slow; the counts are in `last`).
    huge_pages: ask for pages of 2 MiB, which the processor finds faster.

    What this machine can do of it is in the attribute policy: 'tight' where the allocator cannot be compiled, and
    malloc gives freed memory back at once instead (as small, but slow); 'default' where malloc cannot do that either.
    note: why, on one line; a warning says so, too. One arena serves the whole process: a further `Arena` shares its
    memory.

    last: how the last step's blocks were placed. recorded_peak_bytes: the most that the last step's tensors took above
    what there was when it began; None if the step was not recorded (the second of a kind is, and some after it).

    Errors: InputError for an unknown policy.
    """

    def __init__(self, policy: str = "arena", *, check: bool = False, huge_pages: bool = True) -> None:
        self.policy, self.note = POLICIES.find(policy).name, ""
        self._library: ctypes.CDLL | None = None
        self._guard_bytes = _GUARD_BYTES if check else 0
        self.last: Use | None = None
        self.recorded_peak_bytes: int | None = None
        self._kinds: dict[tuple[Hashable, ...], _Kind] = {}
        self._marks: list[_Mark] = []
        self._entered = threading.Lock()
        problem = "malloc cannot be made tight"
        if policy == "arena":
            try:
                self._library = _installed(check, huge_pages)
            except NotBuiltError as error:
                self.policy, problem = "tight", f"no planned arena: {error}"
        if self.policy == "tight" and not tighten_malloc():
            self.policy = "default"
        if self.policy != policy:
            instead = "malloc gives freed memory back at once" if self.policy == "tight" else "malloc stays as it is"
            self.note = f"{problem}; {instead} instead"
            warnings.warn(self.note, stacklevel=2)

    @contextmanager
    def step(self, *kind: Hashable) -> Iterator[None]:
        """Run one step in the arena.

        kind: what tells steps apart that allocate differently, such as the images' shape, or 'evaluation'; each kind is
        rehearsed and planned by itself. A step is a whole update; what runs before and after it, such as loading
        images, need not be inside.

        Errors: InputError for a step within a step, or of another thread at the same time.
        """
        if self._library is None:
            yield
            return
        if not self._entered.acquire(blocking=False):
            raise InputError("a step of this arena is already running; end it before the next, on one thread at a time")
        known = self._kinds.setdefault(kind, _Kind())
        records = known.number is None and known.steps >= _WARM
        if records and not self._marks:
            self._library.arena_log(1)
        begin = self._log_length() if self._marks or records else 0
        if known.number is None:
            self._library.arena_enter(_REHEARSAL, 0)
        else:
            self._library.arena_enter(_REPLAY, known.number)
        done = False
        try:
            yield
            done = True
        finally:
            self.last = self._leave()
            self._after(known, records, begin, done)
            self._entered.release()

    def placement(self, *kind: Hashable) -> Placement | None:
        """Return where a kind's blocks are; None while it is rehearsed."""
        known = self._kinds.get(kind)
        return known.placement if known else None

    def rest(self) -> None:
        """Give the memory in which no tensor lives back to the system; the next step takes it anew, which is slower.

        For what happens between steps and needs memory itself, such as writing weights.
        """
        if self._library is not None:
            self._library.arena_rest()

    def close(self) -> None:
        """Leave memory to the allocator that was there before; blocks that live stay where they are."""
        if self._library is not None:
            self._library.arena_log(0)
            self._library.arena_close()
        self._kinds, self._marks = {}, []

    def _leave(self) -> Use:
        assert self._library is not None  # a step was entered
        out = np.zeros(len(_COUNTS), np.int64)
        self._library.arena_leave(_pointer(out))
        return Use(*out.tolist())

    def _after(self, known: _Kind, records: bool, begin: int, done: bool) -> None:
        """Note a step that is over: what was recorded before it is whole now."""
        assert self.last is not None and self._library is not None  # it was just left
        before = self._marks.pop() if self._marks else None
        if done:  # of a step that was broken off nothing is learnt, nor of the one before it
            if before is not None:
                self._take(before, begin)
            self._count(known, records and known.number is None, begin)
        if not self._marks:
            self._library.arena_log(0)

    def _read_log(self) -> Counts:
        assert self._library is not None  # something was recorded
        log = np.zeros(self._library.arena_read_log(None, 0), np.int64)
        self._library.arena_read_log(_pointer(log), len(log))
        return log

    def _count(self, known: _Kind, records: bool, begin: int) -> None:
        assert self.last is not None  # it was just left
        known.steps += 1
        self.recorded_peak_bytes = None
        if known.number is not None:
            known.off = known.off + 1 if self.last.is_off else 0
            if known.off == _MOST_OFF:
                self._kinds = {key: _Kind(_WARM) if kind is known else kind for key, kind in self._kinds.items()}
        elif records:
            self._marks.append(_Mark(known, begin, self._log_length()))
            self.recorded_peak_bytes = _peak_bytes(self._read_log(), begin)

    def _take(self, mark: _Mark, next_begin: int) -> None:
        """Keep a recorded step, and plan if it is as the one before."""
        kind = mark.kind
        one = Recorded.of(self._read_log(), mark.begin, mark.end, next_begin)
        alike = bool(kind.recorded) and np.array_equal(kind.recorded[-1].sizes, one.sizes)
        kind.recorded.append(one)
        if alike or len(kind.recorded) == _MOST_RECORDED:
            self._plan(kind, one)

    def _plan(self, kind: _Kind, one: Recorded) -> None:
        assert self._library is not None  # it was recorded
        blocks = one.blocks
        found = place(replace(blocks, bytes=blocks.bytes + self._guard_bytes))
        places = np.full(len(one.sizes), -1, np.int64)
        places[one.inside] = found.places
        number = self._library.arena_plan(_pointer(one.sizes), _pointer(places), len(places), found.bytes)
        if number < 0:
            raise MemoryError(f"the system gives no {found.bytes} bytes of addresses for the arena")
        kind.number, kind.placement, kind.recorded = number, found, []

    def _log_length(self) -> int:
        assert self._library is not None  # asked within a step
        return self._library.arena_read_log(None, 0)


def _peak_bytes(log: Counts, begin: int) -> int:
    """Return the most bytes that live after log[begin] above those that lived before it; log: as in `Recorded.of`."""
    change, freed = log.copy(), np.flatnonzero(log < 0)
    change[freed] = -log[log > 0][-log[freed] - 1]
    return int(change[begin:].cumsum().max(initial=0))


def _installed(check: bool, huge_pages: bool) -> ctypes.CDLL:
    """Return the allocator, which torch takes from now on. Errors: NotBuiltError."""
    found = library()
    if code := found.arena_install(int(check), int(huge_pages)):
        raise NotBuiltError(f"torch does not take it (code {code})")
    return found


def _pointer(numbers: Counts) -> ctypes._Pointer[ctypes.c_int64]:
    return np.ascontiguousarray(numbers).ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
