"""Images that are small to send, within all limits, and take as long to decode as an image may."""

import functools
import io
import json
from base64 import b64encode

import numpy as np
from PIL import Image

COUNT = 16
SIDE_PIXELS = 4000
# Each makes a decoder walk over all coefficients once more.
EMPTY_SCANS = 90


@functools.cache
def jpeg_of_many_scans(scans: int = EMPTY_SCANS, side_pixels: int = SIDE_PIXELS) -> bytes:
    """A progressive JPEG of one colour whose last scan is repeated (ITU-T T.81, annex G)."""
    file = io.BytesIO()
    Image.fromarray(np.full((side_pixels, side_pixels), 128, np.uint8)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    return data[:-2] + scan * scans + b"\xff\xd9"


@functools.cache
def batch_of_costly_images() -> bytes:
    text = b64encode(jpeg_of_many_scans()).decode()
    return json.dumps({"data": [[number, text] for number in range(COUNT)]}).encode()
