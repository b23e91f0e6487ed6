"""Public data sets in their official layouts, and the phantom, as `SourceDataset`s."""
