"""Patient-level DP-SGD on Opacus. The only package that imports Opacus."""
