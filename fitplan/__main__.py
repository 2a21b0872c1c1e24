"""``python -m fitplan``."""

import sys

from fitplan.cli.main import main

sys.exit(main())
