"""The same program as `bpfree-train`."""

from bpfree.training.main import run

if __name__ == "__main__":
    run()
