"""Predictions as DICOM objects, to go back to where the images came from.

Each names the patient and study of its source images, for they go into the hospital's own PACS,
and says that a program made it and that nobody has verified it.
"""
