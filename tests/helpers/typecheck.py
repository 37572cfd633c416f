"""beartype as the tests use it: an int will do for a float, as type checkers have it, any open file for IO[bytes]."""

from typing import IO, Any

import beartype as bt
from beartype import BeartypeConf, beartype

# it wants subclasses of typing.IO, which neither BytesIO nor a gzip or zstandard reader is
_overrides = bt.FrozenDict if hasattr(bt, "FrozenDict") else bt.BeartypeHintOverrides  # its older name
_FILES = _overrides({IO[bytes]: Any})
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_FILES))
