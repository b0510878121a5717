"""`python -m hypergrad`."""

import sys

from hypergrad.cli.main import main

sys.exit(main())
