"""medfed: federated learning for medical imaging, with privacy that hospitals enforce."""

from importlib.metadata import version

__version__ = version("medfed")
