"""`python -m fewgen` is the same as `fewgen`."""

import sys

from fewgen.cli.main import main

sys.exit(main())
