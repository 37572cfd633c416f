"""The command line in one of several processes, the last of which is given an SAE that does not exist."""

import os
import sys

from saelora.cli import main

words = sys.argv[1:]
if os.environ["RANK"] == "1":
    words[words.index("--sae") + 1] = "./missing"
sys.exit(main(words))
