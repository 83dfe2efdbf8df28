"""The kernel of a batch run: ipykernel that ends at once when the process that started it does."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux; elsewhere ipykernel notices within a second

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
