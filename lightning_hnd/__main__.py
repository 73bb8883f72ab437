"""``python -m lightning_hnd`` is the command ``lightning-hnd``."""

import sys

from lightning_hnd.cli import main

if __name__ == "__main__":
    sys.exit(main())
