"""`python -m hypergrad`."""

import sys

from hypergrad.cli import main

sys.exit(main())
