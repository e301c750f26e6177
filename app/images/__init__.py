"""From an image source, as a row names it, to the bytes of an image file."""
