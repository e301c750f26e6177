"""The classifier: images, networks, training and evaluation, independent of HTTP."""

import os

# TensorFlow reads this once, on its first import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
