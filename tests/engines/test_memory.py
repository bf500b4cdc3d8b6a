import subprocess
import sys

import pytest

PROBE = """
import resource, torch
from liftmap.engines.memory import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(25_000_000)  # 100 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def page_faults(call: str) -> int:
    """Pages that the system had to clear for ten large tensors in turn, once warm."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_tensors_reuse_their_memory() -> None:
    assert page_faults("assert keep_freed_memory()") < 100
    assert page_faults("") > 10_000, "without it the test would show nothing"
