"""How long the tests wait: `STRATO_TEST_PATIENCE=5` multiplies every deadline of the framework.

For machines that are far slower than those that the deadlines are made for, such as the KVM lab's test host.
The runtime's own deadlines stay as they are, but for that of Create, which is a setting (daemons.py).
"""

import os
import time

VARIABLE = "STRATO_TEST_PATIENCE"


def patient(seconds: float) -> float:
    """A span of time for this machine."""
    return seconds * float(os.environ.get(VARIABLE, "1"))


def deadline_after(seconds: float) -> float:
    """The moment, by time.monotonic, when that span is over."""
    return time.monotonic() + patient(seconds)
