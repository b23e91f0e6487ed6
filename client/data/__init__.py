"""From images to the prepared store that training reads. Hospitals and simulations use the same."""
