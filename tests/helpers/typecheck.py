"""beartype as the tests use it: an int will do for a float, as type checkers have it, any open file for IO[bytes]."""

from typing import IO, Any

from beartype import BeartypeConf, BeartypeHintOverrides, beartype

# it wants subclasses of typing.IO, which neither BytesIO nor a gzip or zstandard reader is
_FILES = BeartypeHintOverrides({IO[bytes]: Any})
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_FILES))
