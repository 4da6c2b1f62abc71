"""RecBole's command line with our models known: ``python run_recbole.py --model=ADRRec --dataset=ml-100k``."""

import sys

import recbole_adrrec
from recbole_adrrec.cli import main

if __name__ == "__main__":
    sys.exit(main())
else:
    # Processes that --nproc spawns import this file under another name, and need our models.
    recbole_adrrec.register()
