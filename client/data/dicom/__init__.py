"""DICOM files: headers, pixels as a radiologist sees them, volumes in patient coordinates."""
