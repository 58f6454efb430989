"""`python -m cambium`."""

import sys

from cambium.cli import main

sys.exit(main())
