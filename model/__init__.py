"""The classifier: everything that is true with or without HTTP."""

import os

# TensorFlow reads it when it is first imported, by whichever module that is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
