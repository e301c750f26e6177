"""Turns the image source in a row into the bytes of an image file."""
