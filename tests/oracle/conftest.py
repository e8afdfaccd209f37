import os

# Nothing is downloaded: what the oracles load lies on the disk. Read when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
