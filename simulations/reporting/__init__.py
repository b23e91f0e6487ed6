"""Reports: what a run folder holds, as one page to read, figures to keep, and runs side by side."""
