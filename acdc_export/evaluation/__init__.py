"""A pair in one deployment or several: both halves through the same steps, side by side, and timed in turns."""
