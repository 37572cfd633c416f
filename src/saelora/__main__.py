"""``python -m saelora``, the form that torchrun and accelerate launch take."""

import sys

from saelora.cli import main

if __name__ == "__main__":
    sys.exit(main())
