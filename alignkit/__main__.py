"""`python -m alignkit`, and so `accelerate launch -m alignkit train …`."""

import sys

from alignkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
