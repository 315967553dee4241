"""The trial: from a set of images to a verdict per class."""
