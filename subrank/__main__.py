"""`python -m subrank`."""

import sys

from subrank.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
