"""From images to the prepared store that training reads. Hospitals and simulations use the same."""

import logging

# What pydicom remarks about a damaged file quotes its values, names among them. Its warnings are
# gathered where files are read; none of it belongs into a log.
logging.getLogger("pydicom").disabled = True
