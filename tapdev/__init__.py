"""FRAMES: links to guests, and what each of them can do.  This package never looks inside a frame."""
