"""Reads the headers of image files, to limit what a decoder does before it starts."""
