"""A hospital's own PACS: what it holds, fetched into its own folder; results sent back."""

import logging

# What these libraries say of a request holds what was asked for, patient ids among it. None of
# it belongs into a log; what goes wrong is told by our own errors.
for _name in ("pynetdicom", "dicomweb_client", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
