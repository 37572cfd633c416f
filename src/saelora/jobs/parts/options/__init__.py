"""Options of the parts of ``saelora evaluate``: a module each, with ``Options`` and ``check(config)``."""
