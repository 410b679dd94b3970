"""`tudsr serve` and `tudsr app`: pictures over HTTP, and a page that uses it. Needs the [serve] extra.

    request -> guard.py (who may ask, how much, how slowly) -> routes.py -> form.py (one picture, its options)
            -> jobs.py (planned by its header) -> worker.py (one thread, a queue with an end) -> routes.py

`service.py` puts these together, `command.py` runs them on a port.
"""
