"""A limit on the memory of a test, so that a file that asks for much of it fails the test alone."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIBIBYTE = 2**30


@contextmanager
def memory(more: int = 2 * GIBIBYTE) -> Iterator[None]:
    """Let this process take so many more bytes of address space, and no more."""
    status = Path("/proc/self/status").read_text()
    size = re.search(r"VmSize:\s+(\d+) kB", status)
    assert size is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(size[1]) * 1024 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
