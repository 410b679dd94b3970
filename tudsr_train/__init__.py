"""The companion trainer: the paper's two-stage recipe over any diffusers base, and the `nano` base."""
