"""Lets the tests of this folder import ``handmade``, the reports that they share (pytest runs in importlib mode)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
