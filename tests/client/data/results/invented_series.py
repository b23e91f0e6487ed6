"""The four slices that the tests of results are about."""

SHAPE = (4, 12, 10)
NAME = "Müller^Änne"
