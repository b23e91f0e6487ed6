"""De-identification by DICOM PS3.15 Annex E, and text that is burnt into pixels.

    profile.py       the standard's tables as data
    resolution.py    compound actions by IOD type
    rules.py         what a site chose
    identity.py      keyed pseudonyms, UIDs and days
    values.py, dates.py   what a value becomes
    remnants.py      a second net: this patient's identity elsewhere
    private.py, overlays.py, codestream.py, marking.py
    engine.py        `deidentify` a data set, giving a Report
    text_marks.py, text_detection.py   `find_text` in a picture
    burnt_in.py      what a header says of text; `clean_pixels`
    file_copies.py, folders.py   files and folders to de-identified copies

Decisions: docs/adr/0017-deidentification.md.
"""
