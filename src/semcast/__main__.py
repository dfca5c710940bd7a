"""``python -m semcast``, the same as ``semcast``."""

from __future__ import annotations

import sys

from semcast.app.cli import main

sys.exit(main())
