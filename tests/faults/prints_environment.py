"""An application that prints what it finds in the environment when it is imported."""

from __future__ import annotations

import os
import sys

sys.stdout.write(os.environ["OPERATOR_PASS"] + "\n" + os.environ["SHOP_URL"] + "\n")
app = None
