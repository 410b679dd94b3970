"""`tudsr doctor`: what of this machine tudsr can use, what it cannot, and what to do about it."""
