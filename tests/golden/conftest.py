import sys
from pathlib import Path

# The folder is no package: tests find what they share beside them.
sys.path.insert(0, str(Path(__file__).parent))
