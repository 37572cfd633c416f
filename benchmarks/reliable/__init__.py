"""The parts of benchmarks/reliability.py: processes to kill, jobs to kill them in, inputs and surroundings to spoil."""

import os
import sys
from pathlib import Path

# before anything imports torch: one thread, so that a fork is a whole process
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

# the tests' tiny workspace and writers of formats
sys.path.append(str(Path(__file__).parents[2] / "tests" / "helpers"))
