"""Back ends that run the graphs of a bundle, behind one small protocol (`backend.py`)."""
