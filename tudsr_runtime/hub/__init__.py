"""Bundles and adapters on a hub: a folder is a repository. `huggingface_hub` speaks to it, and only here."""
