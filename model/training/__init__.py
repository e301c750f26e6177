"""From a labelled folder to an artifact: load, split, train, calibrate, save."""
