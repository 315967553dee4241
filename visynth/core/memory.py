"""Memory that ran out, told as an error of ours, whichever library met it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from visynth.core.errors import OutOfMemory

# torch on a CPU and OpenCV have no class of their own for it.
SIGNS = ("can't allocate memory", "not enough memory", "Failed to allocate", "Insufficient memory", "out of memory")


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn what is raised for lack of memory in the block into one error with advice.

    Args:
        advice: what to do, a sentence.

    Raises:
        OutOfMemory: memory ran out.

    Example:
        >>> with memory_errors("Take a smaller batch."):
        ...     raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        Traceback (most recent call last):
        visynth.core.errors.OutOfMemory: memory ran out (DefaultCPUAllocator: can't allocate memory...). Take a smaller batch.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise OutOfMemory(f"memory ran out ({reason}). {advice}") from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    Example:
        >>> ran_out(MemoryError()), ran_out(ValueError("out of range"))
        (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        return True
    return type(error).__name__ in ("RuntimeError", "error") and any(sign in str(error) for sign in SIGNS)
