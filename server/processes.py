"""What Linux knows of processes: dying with the parent, signals across a fork, what a process holds."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_M_ARENA_MAX, _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -8, -1, -3
_libc = ctypes.CDLL(None, use_errno=True)

_OOM = Path("/proc/self/oom_score_adj")
_USUAL = _OOM.read_text(encoding="ascii")

KEPT = 64 << 20
"""Bytes of freed memory at the end of its heap that a worker keeps."""
KEPT_BLOCK = 32 << 20
"""Bytes up to which a block is taken from the heap, the most that glibc allows; a larger one goes back when it is freed."""

HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
"""Signals that are held back around a fork: until the child has its own handlers they would reach the parent's, and be lost."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; leave at once if it has ended already.

    Set in the child after each fork, since it would outlive an exec in the parent.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)


def lead_group() -> None:
    """Lead a process group of its own, and end all of it when the parent ends: for a child that runs other programs."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os.killpg(0, signal.SIGKILL))
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def hold_signals() -> set[int]:
    """Hold back what would be lost between a fork and the child's own handlers; gives what was held back before."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    except BaseException:  # raised by the handler of one that came just before
        restore_signals(held)
        raise
    return held


def restore_signals(held: set[int]) -> None:
    """Hold back what `held` says and no more; a handler of what comes through may raise here."""
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold them back inside; a handler of what came meanwhile may raise at the end.

    A thread that is begun inside holds them back for good, and takes none that the others hold back.
    """
    held = hold_signals()
    try:
        yield
    finally:
        restore_signals(held)


def release_signals() -> None:
    """Let through what was held back, by whomever: a child has its parent's mask."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def default_signals() -> None:
    """Let every signal end this process as it would by default: what a process that boots must do."""
    for number in (*HELD, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def fork_child(run: Callable[[], int]) -> int:
    """Fork a child that runs `run` and leaves with the status it returns. Gives the child's pid.

    The child dies with this process and skips every exit handler and destructor, which may hang in what it inherited.
    Raises what the handler of a signal that came meanwhile raises.
    """
    parent = os.getpid()
    with signals_held():  # over the callbacks of the fork, in which what a handler raises would be lost
        pid = os.fork()
        if not pid:
            _be_child(parent, run)
    return pid


def _be_child(parent: int, run: Callable[[], int]) -> NoReturn:
    status = 70
    try:
        keep_shared()
        die_with_parent(parent)
        default_signals()
        release_signals()
        status = run()
    finally:
        os._exit(status)


def any_ended() -> bool:
    """Whether a child of this process has ended and nobody has asked how."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def unread(pipe: int) -> bool:
    """Whether nobody is left to read from a pipe of which this is the end to write to."""
    ends = select.poll()
    ends.register(pipe, 0)
    return bool(ends.poll(0))


def family(pid: int) -> list[int]:
    """A process and all below it; those that end meanwhile may or may not be among them."""
    found = [pid]
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):  # the task ended meanwhile
                found += map(int, children.read_text(encoding="ascii").split())
    return found


def alive(pid: int, parent: int) -> bool:
    """Whether `pid` exists, has not ended and is a child of `parent`: an id that was given to someone else is not ours."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The name stands in parentheses and may hold anything, parentheses and spaces included.
    state, ppid = stat.rpartition(b")")[2].split()[:2]
    return state not in (b"Z", b"X") and int(ppid) == parent


def keep_shared() -> None:
    """In a child: never collect what it was forked with, since that writes into every object's header and so copies its page."""
    gc.freeze()


def share_heap() -> None:
    """Have all threads allocate from one heap, which keeps what was freed for the next request.

    Threads take turns anyway, and glibc would give each an arena of its own. And it would give the memory of every large body
    back to the system at once: to fault in the pages of a tensor of 1.6 MB again takes longer than to read it as JSON.
    """
    mallopt = getattr(_libc, "mallopt", None)  # glibc's own
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


def expendable(*, yes: bool) -> None:
    """Have the kernel end this process, and not one that serves, when memory runs out; or no longer.

    Everybody may say so of himself, and take it back.
    """
    with suppress(OSError):  # a sandbox that refuses this
        _OOM.write_text("1000" if yes else _USUAL, encoding="ascii")


def clear_heap() -> None:
    """Collect, and give back to the system what was freed: a load leaves as much as it read, and every fork would count it."""
    gc.collect()
    trim = getattr(_libc, "malloc_trim", None)  # glibc's own
    if trim:
        trim(0)


def tasks(pid: int | str = "self") -> dict[int, str]:
    """The threads of a process, native ones included: task id to name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # the task ended meanwhile
            continue
    return found


def private_bytes(pid: int | str = "self") -> int:
    """Bytes that this process has written and shares with no other; 0 once it has ended.

    Pages of a mapped file that it alone has read so far are not counted: the next reader shares them.
    """
    return memory(pid).get("Private_Dirty", 0)


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes by field of the kernel's smaps_rollup (`Rss`, `Pss`, `Private_Dirty` …); empty once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) << 10 for name, value in pairs}
