"""`python -m lattica` is the `lattica` command."""

import sys

from lattica.cli.main import main

sys.exit(main())
