"""`medfed explain`: what a model says about one examination, and what made it say so."""
