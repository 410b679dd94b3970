"""`tudsr bench`: how long the parts of an upscaling take on this machine."""
