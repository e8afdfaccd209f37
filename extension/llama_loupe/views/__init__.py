"""The views, one file each. Begin with `view.py`, one floor up."""
