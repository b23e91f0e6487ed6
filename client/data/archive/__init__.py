"""A hospital's folders of images: what is in them, grouped, counted and explained."""
