"""Where the noise of a site's training comes from: `common.noise`, by the name it has here."""

from medfed.common.noise import NoiseSource, SecureNoise, SecureUniform, SeededNoise

__all__ = ["NoiseSource", "SecureNoise", "SecureUniform", "SeededNoise"]
