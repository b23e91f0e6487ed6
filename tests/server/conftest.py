"""Lets the tests of this folder import its helpers: pytest's importlib mode leaves it out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
