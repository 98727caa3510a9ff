"""The command `neurenix-ms`, run by `python -m neurenix_ms.command`."""

import sys

from neurenix_ms.command import main

if __name__ == "__main__":
    sys.exit(main())
